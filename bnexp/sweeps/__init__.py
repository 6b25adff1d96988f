"""How the jobs of a sweep become stacks, and how executors train these. Read `run.py` first."""
