"""All architectures, by name, and checks of a network before it is trained."""

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
from bnexp.models.norm_registry import find_norm
from bnexp.models.norms import BatchNorm, GroupNorm
from bnexp.models.resnet import resnet
from bnexp.models.torchvision_networks import remarks, torchvision_network
from bnexp.models.vgg import vgg
from bnexp.runs.config import ConfigError, RunConfig
from bnexp.runs.distributed import processes
from bnexp.runs.plugins import find_entry, plugins_of

# Each function makes a network from a builder of its parts, the shape of an image and the number of classes.
ARCHS: dict[str, Callable[[Builder, Shape, int], nn.Module]] = {
    "mlp": mlp,
    "convnet": convnet,
    "lenet": lenet,
    "vgg": vgg,
    "resnet": resnet,
    "densenet": densenet,
    "torchvision": torchvision_network,
}
DENSE = {"convnet", "lenet", "vgg"}  # architectures with dense layers after convolutions
STACKS = {"mlp"}  # architectures trained as one network; on a CPU, stacked convolutions are slower than separate ones

FEW_PARAMETERS = 2**25  # of a network that is checked on the CPU: 128 MiB


def make_model(config: RunConfig, shape: Shape, classes: int, device: str = "meta") -> nn.Module:
    """Make the network of a run, whose initial weights `initialize` draws later. shape: (C, H, W) of an image.

    On the meta device, the default, parameters and buffers have names and shapes but no values. Raises ConfigError for
    an unknown architecture, norm or activation, and where settings of the network and images don't fit together.
    """
    make = find_entry("arch", config.arch.name, ARCHS)
    norm = replace(config.norm, conditions=max(1, len(config.dataset.conditions)))
    with torch.device(device):
        model: nn.Module = make(Builder(config.arch, norm, config.act, config.batch_size), shape, classes)
    return model


_checked: set[str] = set()  # descriptions of networks and batches that passed; many runs of a sweep have the same


def check_model(config: RunConfig, shape: Shape, classes: int) -> nn.Module:
    """Make the network on the meta device, check that each batch or group norm averages at least two values, and return
    it.

    Normalizing a single value would leave only β. Layer and instance norms are group norms. Networks that passed before
    are not checked again. Raises ConfigError if the check fails, and as `make_model` does.
    """
    batch = (config.batch_size // processes(), *shape)
    description = repr((config.arch, config.norm, config.act, config.dataset.conditions, batch, classes))
    is_new = description not in _checked
    if is_new and (plugins_of(config) or config.arch.name == "torchvision"):
        check_foreign(config, shape, classes)
    model = make_model(config, shape, classes)
    if is_new:
        check_statistics(model, config, batch, classes)
        _checked.add(description)
    return model


def check_foreign(config: RunConfig, shape: Shape, classes: int) -> None:
    """Raise ConfigError where the network of a plugin or of torchvision, whose names it has, can't be made for images
    of this shape or gives no logits.
    """
    plugins = [f"{group}={getattr(config, group).name} of {by}" for group, by in plugins_of(config).items()]
    named = ", ".join(plugins or [f"arch.model={config.arch.model} for {' × '.join(map(str, shape))}"])
    try:
        logits = make_model(config, shape, classes, device="cpu")(torch.zeros(2, *shape))
        if logits.shape != (2, classes):
            raise ValueError(f"2 images give {tuple(logits.shape)}, not (2, {classes})")
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{named} cannot be used: {type(error).__name__}: {error}") from error


def check_statistics(model: nn.Module, config: RunConfig, batch: tuple[int, int, int, int], classes: int) -> None:
    """Raise ConfigError if a batch of this shape (N, C, H, W) gives a batch or group norm (as layer and instance norms
    are) fewer than two values to average.

    One black image passes through a network that is made anew from `config`, and each norm counts what it would average
    in a batch of N; of `model` only the parameters are counted. A large network is made on the meta device, where it
    needs no memory; any other on the CPU, since operations on the meta device import torch's compiler, which takes more
    than a second.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    device = "cpu" if parameters <= FEW_PARAMETERS else "meta"
    network = make_model(config, batch[1:], classes, device).eval()
    norms = [(name, norm) for name, norm in network.named_modules() if isinstance(norm, BatchNorm | GroupNorm)]
    for name, norm in norms:
        norm.register_forward_pre_hook(partial(require_two_values, config, name, batch[0]))
    if norms:
        with torch.no_grad():
            network(torch.zeros(1, *batch[1:], device=device))


def require_two_values(
    config: RunConfig, layer: str, size: int, norm: BatchNorm | GroupNorm, inputs: tuple[Tensor]
) -> None:
    """Raise ConfigError if a norm averages fewer than two values of a batch of `size` examples shaped like its input's.

    This is a forward pre-hook of the norm. layer: name of the norm in the network; inputs: the norm's arguments.
    """
    given = torch.empty(size, *inputs[0].shape[1:], device="meta")
    values = norm.values_averaged(given)
    if values >= 2:
        return
    over_batch = isinstance(norm, BatchNorm)
    key = f"norm={config.norm.name}" + (f" with batch_size={config.batch_size}" if over_batch else "")
    remedy = "a larger batch" if over_batch else "more units or channels, fewer groups or larger images"
    raise ConfigError(
        f"{key} is not allowed: {layer} is given {' × '.join(map(str, given.shape))}, where each mean and variance "
        f"is of {values} value, at least 2 are needed ({remedy})"
    )


def stacks(config: RunConfig) -> bool:
    """Return whether runs of this architecture train as one network if compiled; on a CPU only MLPs gain from it."""
    return config.arch.name in STACKS


def notes(config: RunConfig) -> list[str]:
    """Return remarks for a comparison's table: how this configuration's norm changes the network besides adding the
    norm.
    """
    unset = config.norm.name == "frozen_batch" and config.init_from is None
    found = ["without init_from= its mean is 0 and its variance 1"] if unset else []
    if config.arch.name == "torchvision":
        return found + remarks(config)
    norm = find_norm(config.norm)
    if norm.shift and config.arch.norm_position == "before" and config.arch.bias == "auto":
        found.append("no bias where the norm follows")
    if norm.images_only and config.arch.name in DENSE:
        found.append("no norm on the dense layer")
    return found
