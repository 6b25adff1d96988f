"""arch=torchvision: any of torchvision's classification networks whose norm is a BatchNorm2d, with another norm.

The network is torchvision's own, with its layers, their names and its recipe for batch normalization: each BatchNorm2d,
whether the network takes it as an argument or not, is replaced by the layer that `norm=` chooses. Dropout and
stochastic depth are replaced by those of `bnexp.models.noise`. torchvision is imported when it is needed, which takes
as long as torch.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from difflib import get_close_matches
from itertools import pairwise
from types import MethodType
from typing import Any

import torch
from torch import nn

from bnexp.models.activations import OWN, make_activation
from bnexp.models.block import Builder, Shape
from bnexp.models.noise import Dropout, StochasticDepth
from bnexp.models.norm_registry import find_norm, make_norm
from bnexp.runs.config import ArchConfig, ConfigError, NormConfig, RunConfig

TESTED = (
    *("resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "regnet_y_400mf", "mobilenet_v2"),
    *("mobilenet_v3_small", "efficientnet_b0", "densenet121", "vgg16_bn", "googlenet", "shufflenet_v2_x1_0"),
    "mnasnet0_5",
)
BATCHES = ("batch", "batch_scratch", "sync_batch", "noisy_batch", "conditional_batch")
# norm → keys that it takes from the network's recipe; batch renormalization has a momentum of its own
RECIPES = dict.fromkeys(BATCHES, ("eps", "momentum")) | {"frozen_batch": ("eps",), "batch_renorm": ("eps",)}
KEYS = {"eps": "ε", "momentum": "momentum"}
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish)  # modules that `act=` replaces; gates are sigmoids
TWO_OUTPUTS = ("googlenet", "inception_v3")  # networks with auxiliary classifiers, which are left out


def torchvision_network(builder: Builder, shape: Shape, classes: int) -> nn.Module:
    """Make the network `arch.model` of torchvision, which maps images (N, C, H, W) to logits (N, classes).

    Each BatchNorm2d becomes the norm of `norm=`, with the network's own ε and momentum if `arch.recipe` is set and the
    norm is one of batches. A convolution right before a norm that has no β gets a bias. Unless act=own, activations
    that are modules become those of `act=`, except in squeeze-and-excitation. If the images don't have 3 channels, the
    first convolution is made for theirs.

    Raises ConfigError for a network that torchvision lacks, that has no BatchNorm2d or normalizes in another way, too,
    or whose activations are no modules; for a norm of weights; and for `norm.eps` or `norm.momentum` together with
    `arch.recipe`.
    """
    check_norm(builder)
    model = own_network(builder.arch.model, shape, classes)
    check_normalizes(model, builder.arch.model)
    if not find_norm(builder.norm).shift:
        add_biases(model)
    check_groups(model, builder.norm)
    replace_activations(model, builder)
    replace_noise(model, builder.batch_size)
    replace_modules(model, nn.BatchNorm2d, lambda layer: make_norm(norm_config(builder, layer), layer.num_features))
    return model


def own_network(name: str, shape: Shape, classes: int) -> nn.Module:
    """Make torchvision's network for images of this shape (C, H, W). Raises ConfigError for an unknown name."""
    from torchvision import models  # noqa: PLC0415 - takes as long as torch

    known = models.list_models(module=models)
    if name not in known:
        near = get_close_matches(name, known, n=3, cutoff=0.5)
        raise ConfigError(f"arch.model={name} is unknown: torchvision has {', '.join(near or TESTED)}, …")
    settings: dict[str, Any] = {"num_classes": classes}
    if name in TWO_OUTPUTS:  # transform_input: what their trained weights expect, of images with three channels
        settings |= {"aux_logits": False, "init_weights": False, "transform_input": shape[0] == 3}
    # regnets compute their widths with tensors, which have no values on the meta device
    with torch.device("cpu") if name.startswith("regnet") else nullcontext():
        model: nn.Module = models.get_model(name, weights=None, **settings)
    model = model.to(torch.get_default_device())
    if isinstance(model, models.MNASNet):  # its own method wants to know the version of a file
        vars(model)["_load_from_state_dict"] = MethodType(nn.Module._load_from_state_dict, model)
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Conv2d))
    if first.in_channels != shape[0]:
        first.in_channels = shape[0]
        first.weight = nn.Parameter(torch.empty(first.out_channels, shape[0], *first.kernel_size))
    return model


def norm_config(builder: Builder, layer: nn.BatchNorm2d) -> NormConfig:
    """Return the settings of the norm in the place of a layer; with `arch.recipe` it has the layer's ε and momentum."""
    return replace(builder.norm, **{key: getattr(layer, key) for key in recipe_keys(builder.arch, builder.norm)})


def recipe_keys(arch: ArchConfig, norm: NormConfig) -> tuple[str, ...]:
    """Return the keys that a norm takes from the network's recipe; none without `arch.recipe`."""
    return RECIPES.get(norm.name, ()) if arch.recipe else ()


def replace_modules(model: nn.Module, kind: Any, make: Callable[[Any], nn.Module]) -> int:
    """Replace every module of a kind by what `make` returns for it, and return how many there were."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, kind)]
    for name, module in found:
        model.set_submodule(name, make(module))
    return len(found)


def add_biases(model: nn.Module) -> None:
    """Give each convolution right before a BatchNorm2d of the same block a bias, unless it has one."""
    for (place, layer), (next_place, norm) in pairwise(model.named_modules()):
        same_block = place.rpartition(".")[0] == next_place.rpartition(".")[0]
        if same_block and isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))


def replace_activations(model: nn.Module, builder: Builder) -> None:
    """Replace the activations outside of squeeze-and-excitation, unless act=own. Raises ConfigError if there are none.

    Those within belong to a gate, whose sigmoid stays, too.
    """
    from torchvision.ops import SqueezeExcitation  # noqa: PLC0415

    name = builder.act.name
    if name == OWN:
        return
    gates = [place for place, module in model.named_modules() if isinstance(module, SqueezeExcitation)]
    found = [place for place, module in model.named_modules() if isinstance(module, ACTIVATIONS)]
    places = [place for place in found if not any(place.startswith(f"{gate}.") for gate in gates)]
    if not places:
        raise ConfigError(
            f"act={name} is not allowed with arch.model={builder.arch.model}: its activations are no modules, which "
            f"could be replaced; act={OWN} leaves them"
        )
    for place in places:
        model.set_submodule(place, make_activation(name))


def replace_noise(model: nn.Module, batch_size: int) -> None:
    """Replace dropout and stochastic depth by modules whose random numbers come from the run's seed."""
    from torchvision import ops  # noqa: PLC0415

    features = 0  # inputs of the layer that comes next
    for place, module in reversed(list(model.named_modules())):
        if isinstance(module, nn.Linear):
            features = module.in_features
        elif isinstance(module, nn.Dropout) and module.p:
            model.set_submodule(place, Dropout(module.p, batch_size, features))
        elif isinstance(module, ops.StochasticDepth):
            model.set_submodule(place, StochasticDepth(module.p, batch_size, 1))


# ---- checks and remarks


def check_norm(builder: Builder) -> None:
    """Raise ConfigError for a norm of weights, and for ε or momentum that `arch.recipe` would not use."""
    norm, usual = builder.norm, NormConfig()
    if find_norm(norm).of_weights:
        raise ConfigError(f"norm={norm.name} is not allowed with arch=torchvision: it takes the place of no layer")
    for key in recipe_keys(builder.arch, norm):
        if getattr(norm, key) != getattr(usual, key):
            raise ConfigError(
                f"norm.{key}={getattr(norm, key):g} is not allowed with arch.recipe=true, which takes the network's "
                "own: arch.recipe=false"
            )


def check_groups(model: nn.Module, norm: NormConfig) -> None:
    """Raise ConfigError, with the numbers that would do, where `norm.groups` doesn't divide the channels everywhere."""
    channels = {layer.num_features for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)}
    common = math.gcd(*channels)
    if norm.name == "group" and common % norm.groups:
        allowed = ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
        first = next(count for count in sorted(channels) if count % norm.groups)
        why = f"a layer has {first} channels; what divides those of all layers is {allowed}"
        raise ConfigError(f"norm.groups={norm.groups} is not allowed: {why}")


def check_normalizes(model: nn.Module, name: str) -> None:
    """Raise ConfigError for a network without BatchNorm2d, and for one that normalizes in another way, too."""
    layers = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)
    others = sorted({type(module).__name__ for module in model.modules() if isinstance(module, layers)})
    if others:
        raise ConfigError(f"arch.model={name} is not allowed: it normalizes by {others[0]}, which norm= can't replace")
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise ConfigError(f"arch.model={name} is not allowed: it has no BatchNorm2d, which norm= could replace")


def remarks(config: RunConfig) -> list[str]:
    """Return remarks for a comparison's table: the recipe's ε and momentum, and what differs from torchvision's."""
    name, norm = config.arch.model, find_norm(config.norm)
    with torch.device("meta"):
        layers = [m for m in own_network(name, (3, 64, 64), 2).modules() if isinstance(m, nn.BatchNorm2d)]
    keys = recipe_keys(config.arch, config.norm)
    recipes = {" and ".join(f"{KEYS[key]} {getattr(layer, key):g}" for key in keys) for layer in layers}
    found = [f"{recipe} of {name}" for recipe in sorted(recipes) if recipe]
    if not norm.shift:
        found.append("biases in place of β")
    if name.startswith("densenet") and config.act.name not in (OWN, "relu"):
        found.append("the last ReLU, which is no module, stays")
    return [*found, *([] if name in TESTED else [f"{name} is not among the networks that are tested"])]
