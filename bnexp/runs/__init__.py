"""The lowest layer: the schema of configurations, the run directory, files, locks, records, console output, seeds.

Read `directory.py` first.
"""
