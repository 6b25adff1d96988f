"""Data sets, conditions (transformed versions of their images), and the order of batches. Read `load.py` first."""
