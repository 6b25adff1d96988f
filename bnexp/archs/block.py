"""What every architecture is made of."""

from dataclasses import replace

from torch import Tensor, nn

from bnexp.activations import make_activation
from bnexp.config import ActConfig, ArchConfig, NormConfig
from bnexp.norms import IMAGES_ONLY, WITHOUT_SHIFT, make_norm


class Block(nn.Module):
    """layer → norm → activation, or layer → activation → norm where `after`.

    The norm's place is kept when there is none, so that a parameter has the same name, hence the same start, in
    every arm of a comparison.
    """

    def __init__(self, layer: nn.Module, norm: nn.Module, activation: nn.Module, after: bool) -> None:
        super().__init__()
        self.layer, self.norm, self.activation, self.after = layer, norm, activation, after

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        y: Tensor = self.norm(self.activation(x)) if self.after else self.activation(self.norm(x))
        return y


class PreActivation(nn.Module):
    """norm → activation → layer (He et al. 2016, "Identity mappings in deep residual networks")."""

    def __init__(self, layer: nn.Module, norm: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.norm, self.activation, self.layer = norm, activation, layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(self.activation(self.norm(x)))
        return y


def has_bias(arch: ArchConfig, norm: NormConfig) -> bool:
    """Whether a block's layer has a bias: by default not where a norm follows it, whose β takes its place."""
    if isinstance(arch.bias, bool):
        return arch.bias
    return norm.name in WITHOUT_SHIFT or arch.norm_position == "after"


def make_block(layer: nn.Module, features: int, arch: ArchConfig, norm: NormConfig, act: ActConfig) -> Block:
    return Block(layer, make_norm(norm, features), make_activation(act.name), after=arch.norm_position == "after")


def make_pre_activation(layer: nn.Module, features: int, norm: NormConfig, act: ActConfig) -> PreActivation:
    """`features`: channels that it reads."""
    return PreActivation(layer, make_norm(norm, features), make_activation(act.name))


def norm_for_vectors(norm: NormConfig) -> NormConfig:
    """The norm of a network's dense layers: none where the chosen one needs images."""
    return replace(norm, name="none") if norm.name in IMAGES_ONLY else norm
