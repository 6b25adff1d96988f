"""All activations, by name."""

from collections.abc import Callable

from torch import nn

from bnexp.runs.config import ConfigError
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
OWN = "own"  # the activations that a network of torchvision has by itself


def make_activation(name: str) -> nn.Module:
    """Make the activation with this name, as a module. Raises ConfigError for an unknown name, and for OWN."""
    if name == OWN:
        raise ConfigError(f"act={OWN} is not allowed: arch=torchvision alone has activations of its own")
    activation: nn.Module = find_entry("act", name, ACTIVATIONS)()
    return activation
