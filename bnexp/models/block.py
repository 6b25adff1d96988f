"""The parts that architectures share, above all the block: a layer with its norm and its activation."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor, nn

from bnexp.models.activations import make_activation
from bnexp.models.norm_registry import find_norm, make_norm
from bnexp.models.weight_norms import WeightNorm
from bnexp.runs.config import ActConfig, ArchConfig, ConfigError, NormConfig, require

Shape = tuple[int, int, int]  # channels, height and width of an image


class Block(nn.Module):
    """A block of a network: layer → norm → activation, or layer → activation → norm if `after` is set; then an optional
    pool.

    Without normalization, `norm` is nn.Identity: so each parameter of the other parts has the same name, and hence the
    same initial value, in every arm of a comparison.
    """

    def __init__(
        self, layer: nn.Module, norm: nn.Module, activation: nn.Module, after: bool, pool: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.layer, self.norm, self.activation, self.after, self.pool = layer, norm, activation, after, pool

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block's parts in their order."""
        if self.after:
            y: Tensor = self.norm(self.activation(self.layer(x)))
        else:
            y = self.activation(normalized(self.layer, self.norm, x))
        return self.pool(y) if self.pool else y


def normalized(layer: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """Return the normalized output of a layer; a norm of weights computes the layer with normalized weights."""
    y: Tensor = norm.through(layer, x) if isinstance(norm, WeightNorm) else norm(layer(x))
    return y


class GlobalMean(nn.Module):
    """A layer that averages each channel over all positions: (N, C, H, W) → (N, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of each channel of each image."""
        return x.mean((2, 3))


def chain(**parts: nn.Module) -> nn.Sequential:
    """Make a network that applies these modules one after the other; each keyword becomes the name of its module."""
    return nn.Sequential(OrderedDict(parts))


def require_side(shape: Shape, smallest: int, network: str) -> None:
    """Raise ConfigError for images (C, H, W) whose height or width is below `smallest` pixels.

    network: the beginning of the message, for example "arch=vgg".
    """
    if min(shape[1:]) < smallest:
        raise ConfigError(f"{network} needs at least {smallest}×{smallest} pixels, not {shape[1]}×{shape[2]}")


def repetitions(arch: ArchConfig, step: int, rest: int) -> int:
    """Return the n for which step · n + rest is `arch.depth`. Raises ConfigError if there is no such n ≥ 1."""
    n, remainder = divmod((arch.depth or 0) - rest, step)
    allowed = f"arch={arch.name} has {step}n + {rest} layers: {', '.join(str(step * k + rest) for k in range(1, 5))}, …"
    require(n >= 1 and remainder == 0, "arch.depth", arch.depth, allowed)
    return n


@dataclass(frozen=True)
class Builder:
    """A builder of one network's parts. arch, norm, act: the settings of its architecture, norms and activations.

    batch_size: examples in a batch, which dropout draws random numbers for.
    """

    arch: ArchConfig
    norm: NormConfig
    act: ActConfig
    batch_size: int = 1

    @property
    def bias(self) -> bool:
        """Whether the layers before the classifier have a bias: `arch.bias`; if "auto", only for norm=none,
        norm=rms and norm_position=after.
        """
        if isinstance(self.arch.bias, bool):
            return self.arch.bias
        return not find_norm(self.norm).shift or self.arch.norm_position == "after"

    def block(self, layer: nn.Module, features: int, pool: nn.Module | None = None) -> Block:
        """Make a block of layer, norm, activation and optional pool. features: units or channels of the layer.

        Raises ConfigError as `make_norm` and `make_activation` do, and for a norm of weights that no layer precedes.
        """
        after = self.arch.norm_position == "after"
        self.require_layer_first(not after and not isinstance(layer, nn.Identity))
        return Block(layer, make_norm(self.norm, features), make_activation(self.act.name), after, pool)

    def pre_activation(self, layer: nn.Module, features: int) -> nn.Sequential:
        """Make norm → activation → layer (He et al. 2016, "Identity mappings"). features: input channels of layer.

        Raises ConfigError as `make_norm` and `make_activation` do, and for a norm of weights.
        """
        self.require_layer_first(False)
        return chain(norm=make_norm(self.norm, features), activation=make_activation(self.act.name), layer=layer)

    def require_layer_first(self, first: bool) -> None:
        """Raise ConfigError for a norm of weights unless a layer comes `first`, right before the norm."""
        if find_norm(self.norm).of_weights and not first:
            raise ConfigError(
                f"norm={self.norm.name} is not allowed here: it normalizes the weights of the layer before it, which "
                "arch.norm_position=after, arch.pre_activation=true and arch=densenet don't have"
            )

    def convolution(self, inputs: int, features: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
        """Make a convolution with a kernel of size × size, for odd sizes, which divides height and width by `stride`,
        rounded up.
        """
        return nn.Conv2d(inputs, features, size, stride, padding=size // 2, bias=self.bias)

    def dense(self, widths: Sequence[int]) -> nn.Sequential:
        """Make fully connected blocks from each width to the next. A norm that needs images is left out, as with
        norm=none.
        """
        images_only = find_norm(self.norm).images_only
        flat = replace(self, norm=replace(self.norm, name="none")) if images_only else self
        return nn.Sequential(*(flat.block(nn.Linear(n, m, bias=flat.bias), m) for n, m in pairwise(widths)))
