"""How the jobs of a sweep become stacks, and how executors train these (`run.py`, read first). The protocol of an
executor is in `executor.py`.
"""
