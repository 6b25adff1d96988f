"""Data sets, styles of their images, and the order of batches. Read `load.py` first."""
