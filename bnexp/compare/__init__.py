"""Comparison of runs: run directories → arms → statistics, figures, tables and pages; also the benchmark of training
speed, and the loss landscape.

Read `arms.py` first.
"""
