"""Every architecture, by name."""

import torch
from torch import nn

from bnexp.archs.convnet import ConvNet
from bnexp.archs.mlp import MLP
from bnexp.config import RunConfig, require_choice

ARCHS: dict[str, type[MLP] | type[ConvNet]] = {"mlp": MLP, "convnet": ConvNet}


def make_model(config: RunConfig, shape: tuple[int, int, int], classes: int, device: str = "meta") -> nn.Module:
    """The network of a run for images (C, H, W); on the meta device it has shapes and names, but no values.

    Raises ConfigError where the architecture, the norm and the data don't fit one another.
    """
    require_choice("arch", config.arch.name, ARCHS)
    with torch.device(device):
        return ARCHS[config.arch.name](config.arch, config.norm, config.act, shape, classes)


def stacks(config: RunConfig) -> bool:
    """Whether runs of this architecture gain from training as one network on a CPU."""
    return ARCHS[config.arch.name].stacks


def notes(config: RunConfig) -> list[str]:
    """What sets this arm apart besides its norm; a comparison's table names it."""
    found = []
    if config.norm.name != "none" and config.arch.norm_position == "before" and config.arch.bias == "auto":
        found.append("no bias where the norm follows")
    if config.norm.name == "instance":
        found.append("no norm on the dense layer")
    return found
