"""Residual networks for small images (He et al. 2016, "Deep residual learning for image recognition", §4.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnexp.models.activations import make_activation
from bnexp.models.block import Builder, GlobalMean, Shape, chain, repetitions
from bnexp.models.norms import make_norm
from bnexp.runs.config import ArchConfig, ConfigError, require

ZERO_INIT = ("arch.residual_init_zero", "true")


def resnet(builder: Builder, shape: Shape, classes: int) -> nn.Module:
    """Images (N, C, H, W) → logits (N, classes), by residual blocks and a classifier.

    A 3×3 convolution with norm and activation; a stage for each of `arch.channels`, each of n residual blocks of two
    3×3 convolutions, the first of a later stage with stride 2; the mean over positions; a linear classifier. With three
    stages the depth is 6n + 2.

    `pre_activation`: norm and activation precede each convolution, and follow the last block (He et al. 2016,
    "Identity mappings"). `residual_init_zero`: the last γ of a block starts at 0 (Goyal et al. 2017, §5.1).
    `skip_init`: a learned factor on a block's branch, which starts at 0 (De & Smith 2020).

    Raises ConfigError for another depth, for widths that shrink, and for `residual_init_zero` where a branch doesn't
    end in a γ.
    """
    arch, stages = builder.arch, list[nn.Module]()
    blocks, features = repetitions(arch, 2 * len(arch.channels), 2), arch.channels[0]
    pre_activation = arch.pre_activation
    check_zero_init(arch)
    first = builder.convolution(shape[0], features)
    block = PreActivationBlock if pre_activation else BasicBlock
    for width in arch.channels:
        start = block(features, width, 2 if stages else 1, builder)
        stages.append(nn.Sequential(start, *(block(width, width, 1, builder) for _ in range(blocks - 1))))
        features = width
    return chain(
        first=first if pre_activation else builder.block(first, arch.channels[0]),
        stages=nn.Sequential(*stages),
        last=builder.block(nn.Identity(), features) if pre_activation else nn.Identity(),
        mean=GlobalMean(),
        classifier=nn.Linear(features, classes),
    )


class Residual(nn.Module):
    """x (N, inputs, H, W) → shortcut(x) + factor · branch(x), (N, features, H / stride, W / stride).

    The shortcut has no parameters (option A of §4.2): it takes every second position where the branch has stride 2,
    and 0 in new channels. Raises ConfigError where there are fewer channels than before.
    """

    def __init__(self, inputs: int, features: int, stride: int, builder: Builder) -> None:
        super().__init__()
        if features < inputs:
            raise ConfigError(
                f"arch.channels narrows from {inputs} to {features}, which is not allowed: a shortcut of arch=resnet "
                "adds channels and takes none away"
            )
        self.features, self.stride = features, stride
        self.factor = nn.Parameter(torch.zeros(())) if builder.arch.skip_init else None

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """Add a block's input to the output of its branch."""
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.features - x.shape[1]))
        return shortcut + (branch if self.factor is None else self.factor * branch)


class BasicBlock(Residual):
    """Convolution, norm, activation, convolution, norm; the activation once more on the sum."""

    def __init__(self, inputs: int, features: int, stride: int, builder: Builder) -> None:
        super().__init__(inputs, features, stride, builder)
        self.first = builder.block(builder.convolution(inputs, features, stride=stride), features)
        self.layer = builder.convolution(features, features)
        self.norm = make_norm(builder.norm, features)
        self.activation = make_activation(builder.act.name)
        if builder.arch.residual_init_zero:
            start_at_zero(self.norm)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch, then activate."""
        y: Tensor = self.activation(self.add(x, self.norm(self.layer(self.first(x)))))
        return y


class PreActivationBlock(Residual):
    """Norm, activation, convolution, twice; nothing on the sum."""

    def __init__(self, inputs: int, features: int, stride: int, builder: Builder) -> None:
        super().__init__(inputs, features, stride, builder)
        self.first = builder.pre_activation(builder.convolution(inputs, features, stride=stride), inputs)
        self.second = builder.pre_activation(builder.convolution(features, features), features)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch."""
        return self.add(x, self.second(self.first(x)))


def check_zero_init(arch: ArchConfig) -> None:
    """Raises ConfigError where `residual_init_zero` doesn't fit the other keys."""
    if arch.residual_init_zero:
        require(not arch.pre_activation, *ZERO_INIT, "a pre-activation block ends in a convolution")
        both = "with arch.skip_init=true both factors of a branch would be 0, and so its gradient for ever"
        require(not arch.skip_init, *ZERO_INIT, both)


def start_at_zero(norm: nn.Module) -> None:
    """Set the initial γ of a norm to 0. Raises ConfigError where it has none."""
    scales = [parameter for name, parameter in norm.named_parameters() if name.split(".")[-1] == "weight"]
    scale = "it needs a norm that learns a scale; arch.skip_init=true does the same without one"
    require(bool(scales), *ZERO_INIT, scale)
    nn.init.zeros_(scales[0])
