"""Every architecture, by name, and the checks of a network before it is trained."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from bnexp.models.block import Builder, Shape
from bnexp.models.convnet import convnet
from bnexp.models.densenet import densenet
from bnexp.models.lenet import lenet
from bnexp.models.mlp import mlp
from bnexp.models.norms import IMAGES_ONLY, WITHOUT_SHIFT, BatchNorm, GroupNorm
from bnexp.models.resnet import resnet
from bnexp.models.vgg import vgg
from bnexp.runs.config import ConfigError, RunConfig, require_choice
from bnexp.runs.distributed import processes

# Each makes a network from the builder of its parts, the shape of an image and the number of classes.
ARCHS: dict[str, Callable[[Builder, Shape, int], nn.Module]] = {
    "mlp": mlp,
    "convnet": convnet,
    "lenet": lenet,
    "vgg": vgg,
    "resnet": resnet,
    "densenet": densenet,
}
DENSE = {"convnet", "lenet", "vgg"}  # have dense layers behind convolutions
STACKS = {"mlp"}  # grouped convolutions are slower on a CPU than one network after the other


def make_model(config: RunConfig, shape: Shape, classes: int, device: str = "meta") -> nn.Module:
    """Make the network of a run for images (C, H, W); on the meta device it has shapes and names, but no values.

    Raises ConfigError where the architecture, the norm and the data don't fit one another.
    """
    require_choice("arch", config.arch.name, ARCHS)
    norm = replace(config.norm, conditions=max(1, len(config.dataset.conditions)))
    with torch.device(device):
        return ARCHS[config.arch.name](Builder(config.arch, norm, config.act), shape, classes)


_checked: set[str] = set()  # networks and batches that passed: a sweep has few of them and many runs of each


def check_model(config: RunConfig, shape: Shape, classes: int) -> nn.Module:
    """Make the network on the meta device and check that each norm averages two values or more.

    Of a single one nothing would be left but β. Raises ConfigError, also as `make_model` does.
    """
    model, batch = make_model(config, shape, classes), (config.batch_size // processes(), *shape)
    network = repr((config.arch, config.norm, config.act, config.dataset.conditions, batch, classes))
    if network not in _checked:
        check_statistics(model, config, batch)
        _checked.add(network)
    return model


def check_statistics(model: nn.Module, config: RunConfig, batch: tuple[int, ...]) -> None:
    """Raises ConfigError where a batch of this shape gives a norm of the network a single value to average."""
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
    """Raises ConfigError where a norm, in the layer of this name, averages fewer than two values of its input."""
    values = norm.values_averaged(inputs[0])
    if values >= 2:
        return
    over_batch = isinstance(norm, BatchNorm)
    key = f"norm={config.norm.name}" + (f" with batch_size={config.batch_size}" if over_batch else "")
    remedy = "a larger batch" if over_batch else "more units or channels, fewer groups or larger images"
    raise ConfigError(
        f"{key} is not allowed: {layer} is given {' × '.join(map(str, inputs[0].shape))}, where each mean and variance "
        f"is of {values} value, at least 2 are needed ({remedy})"
    )


def stacks(config: RunConfig) -> bool:
    """Whether runs of this architecture gain from training as one network on a CPU."""
    return config.arch.name in STACKS


def notes(config: RunConfig) -> list[str]:
    """List what else sets an arm apart that has this norm; a comparison's table names it."""
    remarks = []
    if config.norm.name not in WITHOUT_SHIFT and config.arch.norm_position == "before" and config.arch.bias == "auto":
        remarks.append("no bias where the norm follows")
    if config.norm.name in IMAGES_ONLY and config.arch.name in DENSE:
        remarks.append("no norm on the dense layer")
    return remarks
