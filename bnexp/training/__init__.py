"""Training one stack of runs: the loop over steps (`loop.py`, read first), the step itself (`engine.py`), compilation,
optimizers, evaluation and checkpoints.
"""
