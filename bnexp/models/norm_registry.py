"""All normalizations, by name. To add one, write its class, enter it in `NORMS`, and write conf/norm/NAME.yaml."""

from dataclasses import dataclass
from functools import partial

from torch import nn

from bnexp.models.noise import NoisyBatchNorm
from bnexp.models.norms import (
    BatchNorm,
    BatchNormFromScratch,
    ConditionalNorm,
    FrozenBatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    Make,
    RMSNorm,
    SyncBatchNorm,
)
from bnexp.models.renorm import BatchRenorm
from bnexp.models.weight_norms import ScaledWeightNorm, WeightNorm
from bnexp.runs.config import NormConfig
from bnexp.runs.plugins import find_entry


@dataclass(frozen=True)
class Norm:
    """A norm, as an entry of NORMS.

    make: a function (configuration, number of channels) that makes the layer. stackable: keys of NormConfig in which
    the members of a stack that is compiled as one network may differ; the layer's code for vectors (N, C) reads them
    from buffers (`scalar`). shift: whether it has a β, which replaces the bias of the layer before it. conditional:
    whether it has a γ and β for each of `dataset.conditions`. images_only: whether it needs images, as a vector has one
    value per channel, of which only β would be left. of_weights: whether it normalizes a layer's weights, with which
    the layer is computed.
    """

    make: Make
    stackable: tuple[str, ...] = ()
    shift: bool = True
    conditional: bool = False
    images_only: bool = False
    of_weights: bool = False


NORMS: dict[str, Norm] = {
    "none": Norm(lambda config, features: nn.Identity(), shift=False),  # the control: same network, no normalization
    "batch": Norm(BatchNorm, ("eps", "momentum")),
    "batch_scratch": Norm(BatchNormFromScratch, ("eps", "momentum")),
    "sync_batch": Norm(SyncBatchNorm, ("eps", "momentum")),
    "frozen_batch": Norm(FrozenBatchNorm, ("eps",)),
    "noisy_batch": Norm(NoisyBatchNorm, ("eps", "momentum")),
    "batch_renorm": Norm(BatchRenorm, ("eps", "momentum")),
    "layer": Norm(LayerNorm, ("eps",)),
    "instance": Norm(InstanceNorm, ("eps",), images_only=True),
    "group": Norm(GroupNorm, ("eps",)),
    "conditional_batch": Norm(partial(ConditionalNorm, BatchNorm), ("eps", "momentum"), conditional=True),
    "conditional_instance": Norm(partial(ConditionalNorm, InstanceNorm), ("eps",), conditional=True, images_only=True),
    "rms": Norm(RMSNorm, ("eps",), shift=False),
    "weight": Norm(WeightNorm, shift=False, of_weights=True),
    "scaled_weight": Norm(ScaledWeightNorm, shift=False, of_weights=True),
}


def make_norm(config: NormConfig, features: int) -> nn.Module:
    """Make the normalization layer for `features` units or channels. Raises ConfigError for an unknown name, and for a
    number of groups that does not divide `features`.
    """
    norm = find_norm(config).make(config, features)
    vars(norm)["is_norm"] = True  # which `norm_parameters` looks for
    return norm


def norm_parameters(model: nn.Module) -> set[str]:
    """Return the names of the parameters of a network's norms, which `make_norm` made."""
    norms = [(name, module) for name, module in model.named_modules() if getattr(module, "is_norm", False)]
    return {f"{name}.{parameter}" for name, norm in norms for parameter, _ in norm.named_parameters()}


def find_norm(config: NormConfig) -> Norm:
    """Return the norm that a configuration names, of NORMS or a plugin, which may be a function that makes the layer.

    Raises ConfigError for an unknown name.
    """
    norm = find_entry("norm", config.name, NORMS)
    return norm if isinstance(norm, Norm) else Norm(norm)
