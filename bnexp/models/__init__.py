"""Norms, activations, initialization and architectures: plain modules. Read `norms.py` first."""
