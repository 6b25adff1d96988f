"""How one stack of runs trains: the loop over steps (`loop.py`, read first), the step itself (`engine.py`), compiling,
optimizers, evaluation, checkpoints.
"""
