"""All activations, by name."""

from collections.abc import Callable

from torch import nn

from bnexp.runs.plugins import find_entry

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,  # max(x, 0)
    "sigmoid": nn.Sigmoid,  # 1 / (1 + exp(-x))
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,  # x above 0, 0.01 x below
    "elu": nn.ELU,  # x above 0, exp(x) - 1 below
    "gelu": nn.GELU,  # x Φ(x)
    "silu": nn.SiLU,  # x sigmoid(x)
    "identity": nn.Identity,
}


def make_activation(name: str) -> nn.Module:
    """Make the activation with this name, as a module. Raises ConfigError for an unknown name."""
    activation: nn.Module = find_entry("act", name, ACTIVATIONS)()
    return activation
