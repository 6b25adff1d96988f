"""How one stack of runs trains: the loop, the step, compiling, optimizers, evaluation, checkpoints.

Read `loop.py` first.
"""
