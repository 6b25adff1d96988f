"""What every architecture is made of."""

from torch import Tensor, nn

from bnexp.activations import make_activation
from bnexp.config import ActConfig, ArchConfig, NormConfig
from bnexp.norms import make_norm


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


def has_bias(arch: ArchConfig, norm: NormConfig) -> bool:
    """Whether a block's layer has a bias: by default not where a norm follows it, whose β takes its place."""
    if isinstance(arch.bias, bool):
        return arch.bias
    return norm.name == "none" or arch.norm_position == "after"


def make_block(layer: nn.Module, features: int, arch: ArchConfig, norm: NormConfig, act: ActConfig) -> Block:
    return Block(layer, make_norm(norm, features), make_activation(act.name), after=arch.norm_position == "after")
