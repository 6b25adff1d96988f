"""All normalizations, by name. To add one, write its class, enter it in `NORMS` and in the sets below that where they
apply, and write conf/norm/NAME.yaml.
"""

from dataclasses import dataclass
from functools import partial

from torch import nn

from bnexp.models.norms import (
    BatchNorm,
    BatchNormFromScratch,
    ConditionalNorm,
    FrozenBatchNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    Make,
    NoisyBatchNorm,
    RMSNorm,
    SyncBatchNorm,
)
from bnexp.models.renorm import BatchRenorm
from bnexp.models.weight_norms import ScaledWeightNorm, WeightNorm
from bnexp.runs.config import NormConfig, require_choice


@dataclass(frozen=True)
class Norm:
    """An entry of NORMS. make: a function (configuration, number of channels) that makes the layer. stackable: keys of
    NormConfig in which the members of a stack that is compiled as one network may differ; the layer's code for vectors
    (N, C) reads them from buffers (`scalar`).
    """

    make: Make
    stackable: tuple[str, ...] = ()


NORMS: dict[str, Norm] = {
    "none": Norm(lambda config, features: nn.Identity()),  # the control arm: same network, no normalization
    "batch": Norm(BatchNorm, ("eps", "momentum")),
    "batch_scratch": Norm(BatchNormFromScratch, ("eps", "momentum")),
    "sync_batch": Norm(SyncBatchNorm, ("eps", "momentum")),
    "frozen_batch": Norm(FrozenBatchNorm, ("eps",)),
    "noisy_batch": Norm(NoisyBatchNorm, ("eps", "momentum")),
    "batch_renorm": Norm(BatchRenorm, ("eps", "momentum")),
    "layer": Norm(LayerNorm, ("eps",)),
    "instance": Norm(InstanceNorm, ("eps",)),
    "group": Norm(GroupNorm, ("eps",)),
    "conditional_batch": Norm(partial(ConditionalNorm, BatchNorm), ("eps", "momentum")),
    "conditional_instance": Norm(partial(ConditionalNorm, InstanceNorm), ("eps",)),
    "rms": Norm(RMSNorm, ("eps",)),
    "weight": Norm(WeightNorm),
    "scaled_weight": Norm(ScaledWeightNorm),
}
OF_WEIGHTS = {"weight", "scaled_weight"}  # norms of a layer's weights, which the layer is computed with
WITHOUT_SHIFT = {"none", "rms", *OF_WEIGHTS}  # have no β, which could replace a layer's bias
CONDITIONAL = {"conditional_batch", "conditional_instance"}  # one γ and β for each of dataset.conditions
IMAGES_ONLY = {"instance", "conditional_instance"}  # a vector has one value per channel: only β would be left


def make_norm(config: NormConfig, features: int) -> nn.Module:
    """Make the normalization layer for `features` units or channels. Raises ConfigError for an unknown name, and for a
    number of groups that does not divide `features`.
    """
    return find_norm(config).make(config, features)


def find_norm(config: NormConfig) -> Norm:
    """Return the entry of NORMS that a configuration names. Raises ConfigError for an unknown name."""
    require_choice("norm", config.name, NORMS)
    return NORMS[config.name]
