"""Every architecture, by name."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from bnexp.archs.convnet import ConvNet
from bnexp.archs.densenet import DenseNet
from bnexp.archs.lenet import LeNet
from bnexp.archs.mlp import MLP
from bnexp.archs.resnet import ResNet
from bnexp.archs.vgg import VGG
from bnexp.config import ActConfig, ArchConfig, ConfigError, NormConfig, RunConfig, require_choice
from bnexp.norms import IMAGES_ONLY, WITHOUT_SHIFT, BatchNorm, GroupNorm
from bnexp.parallel import processes

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


_checked: set[str] = set()  # networks and batches that were found right, since a sweep has few and many runs of them


def check_model(config: RunConfig, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The network on the meta device. Raises ConfigError as `make_model` does, and where a norm would take mean and
    variance of a single value, of which nothing is left but β: that follows from what each layer is given.
    """
    model, batch = make_model(config, shape, classes), (config.batch_size // processes(), *shape)
    network = repr((config.arch, config.norm, config.act, config.dataset.conditions, batch, classes))
    if network not in _checked:
        check_statistics(model, config, batch)
        _checked.add(network)
    return model


def check_statistics(model: nn.Module, config: RunConfig, batch: tuple[int, ...]) -> None:
    hooks = [
        norm.register_forward_pre_hook(partial(require_two_values, config, name))
        for name, norm in model.named_modules()
        if isinstance(norm, BatchNorm | GroupNorm)
    ]
    if hooks:
        model(torch.empty(batch, device="meta"))
    for hook in hooks:
        hook.remove()


def require_two_values(config: RunConfig, layer: str, norm: BatchNorm | GroupNorm, inputs: tuple[Tensor]) -> None:
    values, (x,) = norm.values_averaged(inputs[0]), inputs
    if values >= 2:
        return
    over_batch = isinstance(norm, BatchNorm)
    what = f"norm={config.norm.name}" + (f" with batch_size={config.batch_size}" if over_batch else "")
    remedy = "a larger batch" if over_batch else "more units or channels, fewer groups or larger images"
    raise ConfigError(
        f"{what} is not allowed: {layer} is given {' × '.join(map(str, x.shape))}, where each mean and variance is of "
        f"{values} value, at least 2 are needed ({remedy})"
    )


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
