"""A file for each publication: its claims and the sweeps that test them. Read `udacity.py` first."""
