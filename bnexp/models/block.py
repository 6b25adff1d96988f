"""The parts that every architecture is made of, above all the block: a layer with its norm and its activation."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor, nn

from bnexp.models.activations import make_activation
from bnexp.models.norms import IMAGES_ONLY, WITHOUT_SHIFT, make_norm
from bnexp.runs.config import ActConfig, ArchConfig, ConfigError, NormConfig, require

Shape = tuple[int, int, int]  # channels, height and width of an image


class Block(nn.Module):
    """layer → norm → activation, or layer → activation → norm where `after`; then a pool, where there is one.

    The norm is a part under the same name even when it is the identity, so that a parameter has the same name, and
    hence the same initial value, in every arm of a comparison.
    """

    def __init__(
        self, layer: nn.Module, norm: nn.Module, activation: nn.Module, after: bool, pool: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.layer, self.norm, self.activation, self.after, self.pool = layer, norm, activation, after, pool

    def forward(self, x: Tensor) -> Tensor:
        """Apply the parts."""
        x = self.layer(x)
        y: Tensor = self.norm(self.activation(x)) if self.after else self.activation(self.norm(x))
        return self.pool(y) if self.pool else y


class GlobalMean(nn.Module):
    """The mean over positions: (N, C, H, W) → (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Average images."""
        return x.mean((2, 3))


def chain(**parts: nn.Module) -> nn.Sequential:
    """Modules that are applied one after the other, each under its name."""
    return nn.Sequential(OrderedDict(parts))


def require_side(shape: Shape, smallest: int, network: str) -> None:
    """Raises ConfigError for images that have fewer pixels on a side; `network` is what needs them."""
    if min(shape[1:]) < smallest:
        raise ConfigError(f"{network} needs at least {smallest}×{smallest} pixels, not {shape[1]}×{shape[2]}")


def repetitions(arch: ArchConfig, step: int, rest: int) -> int:
    """The n for which a network has step · n + rest layers. Raises ConfigError for a depth that is none of these."""
    n, remainder = divmod((arch.depth or 0) - rest, step)
    allowed = f"arch={arch.name} has {step}n + {rest} layers: {', '.join(str(step * k + rest) for k in range(1, 5))}, …"
    require(n >= 1 and remainder == 0, "arch.depth", arch.depth, allowed)
    return n


@dataclass(frozen=True)
class Builder:
    """Builds the parts of one network, which share their architecture's settings, norm and activation."""

    arch: ArchConfig
    norm: NormConfig
    act: ActConfig

    @property
    def bias(self) -> bool:
        """Whether a block's layer has a bias: by default not where a norm follows it, whose β takes its place."""
        if isinstance(self.arch.bias, bool):
            return self.arch.bias
        return self.norm.name in WITHOUT_SHIFT or self.arch.norm_position == "after"

    def block(self, layer: nn.Module, features: int, pool: nn.Module | None = None) -> Block:
        """A layer of `features` units or channels, followed by norm, activation and pool."""
        norm, activation = make_norm(self.norm, features), make_activation(self.act.name)
        return Block(layer, norm, activation, self.arch.norm_position == "after", pool)

    def pre_activation(self, layer: nn.Module, features: int) -> nn.Sequential:
        """norm → activation → a layer that reads `features` channels (He et al. 2016, "Identity mappings")."""
        return chain(norm=make_norm(self.norm, features), activation=make_activation(self.act.name), layer=layer)

    def convolution(self, inputs: int, features: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
        """A convolution that keeps height and width, or divides them by its stride."""
        return nn.Conv2d(inputs, features, size, stride, padding=size // 2, bias=self.bias)

    def dense(self, widths: Sequence[int]) -> nn.Sequential:
        """Dense blocks from each width to the next. A norm that needs images is left out of them."""
        flat = replace(self, norm=replace(self.norm, name="none")) if self.norm.name in IMAGES_ONLY else self
        return nn.Sequential(*(flat.block(nn.Linear(n, m, bias=flat.bias), m) for n, m in pairwise(widths)))
