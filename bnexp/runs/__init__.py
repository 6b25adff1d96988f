"""The ground: the schema of a configuration, the run directory, files, locks, records, the console, seeds.

Read `directory.py` first.
"""
