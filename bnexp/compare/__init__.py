"""Run directories → arms, statistics, figures, tables and pages; throughput; the loss landscape.

Read `arms.py` first.
"""
