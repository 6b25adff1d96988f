"""Divide the jobs of a sweep into stacks, and train these on an executor. Read `run.py` first.

The protocol of executors is in `executor.py`.
"""
