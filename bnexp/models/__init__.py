"""Normalization layers, activations, initial weights and architectures: plain torch modules. Read `norms.py` first."""
