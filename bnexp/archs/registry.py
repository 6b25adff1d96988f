"""Every architecture, by name."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from bnexp.archs.convnet import ConvNet
from bnexp.archs.densenet import DenseNet
from bnexp.archs.lenet import LeNet
from bnexp.archs.mlp import MLP
from bnexp.archs.resnet import ResNet
from bnexp.archs.vgg import VGG
from bnexp.config import ActConfig, ArchConfig, NormConfig, RunConfig, require_choice
from bnexp.norms import IMAGES_ONLY, WITHOUT_SHIFT

# Each of (arch, norm, act, shape of an image, classes).
ARCHS: dict[str, Callable[[ArchConfig, NormConfig, ActConfig, tuple[int, int, int], int], nn.Module]] = {
    "mlp": MLP,
    "convnet": ConvNet,
    "lenet": LeNet,
    "vgg": VGG,
    "resnet": ResNet,
    "densenet": DenseNet,
}
DENSE = {"convnet", "lenet", "vgg"}  # have dense layers behind convolutions
STACKS = {"mlp"}  # grouped convolutions are slower on a CPU than one network after the other


def make_model(config: RunConfig, shape: tuple[int, int, int], classes: int, device: str = "meta") -> nn.Module:
    """The network of a run for images (C, H, W); on the meta device it has shapes and names, but no values.

    Raises ConfigError where the architecture, the norm and the data don't fit one another.
    """
    require_choice("arch", config.arch.name, ARCHS)
    norm = replace(config.norm, conditions=max(1, len(config.dataset.conditions)))
    with torch.device(device):
        return ARCHS[config.arch.name](config.arch, norm, config.act, shape, classes)


def stacks(config: RunConfig) -> bool:
    """Whether runs of this architecture gain from training as one network on a CPU."""
    return config.arch.name in STACKS


def notes(config: RunConfig) -> list[str]:
    """What sets this arm apart besides its norm; a comparison's table names it."""
    found = []
    if config.norm.name not in WITHOUT_SHIFT and config.arch.norm_position == "before" and config.arch.bias == "auto":
        found.append("no bias where the norm follows")
    if config.norm.name in IMAGES_ONLY and config.arch.name in DENSE:
        found.append("no norm on the dense layer")
    return found
