"""Residual networks for small images (He et al. 2016, "Deep residual learning for image recognition", §4.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnexp.models.activations import make_activation
from bnexp.models.block import Builder, GlobalMean, Shape, chain, normalized, repetitions
from bnexp.models.norm_registry import make_norm
from bnexp.runs.config import ArchConfig, ConfigError, require

ZERO_INIT = ("arch.residual_init_zero", "true")


def resnet(builder: Builder, shape: Shape, classes: int) -> nn.Module:
    """Make a ResNet, which maps images (N, C, H, W) to logits (N, classes). shape: (C, H, W).

    It has a 3×3 convolution with norm and activation; a stage for each width in `arch.channels`; the mean over
    positions; a linear classifier. A stage consists of n residual blocks of two 3×3 convolutions; its first block has
    stride 2, except in the first stage. With three stages the depth is 6n + 2.

    `arch.pre_activation`: norm and activation precede each convolution of a block, and follow the last block instead of
    the first convolution (He et al. 2016, "Identity mappings"). `arch.residual_init_zero`: the last γ of a block starts
    at 0 (Goyal et al. 2017, §5.1). `arch.skip_init`: each block's branch is multiplied by a learned factor that starts
    at 0 (De & Smith 2020).

    Raises ConfigError unless `arch.depth` is 2 · stages · n + 2 with n ≥ 1, if a stage has fewer channels than the one
    before, and for `residual_init_zero` together with `pre_activation`, `skip_init` or a norm that learns no γ.
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
    """Base class of residual blocks: (N, inputs, H, W) → (N, features, ⌈H / stride⌉, ⌈W / stride⌉).

    `add` returns shortcut + factor · branch; a subclass computes the branch and what follows the sum. `factor` is a
    learned scalar, 0 at first, with `arch.skip_init`, else None and counts as 1. The shortcut has no parameters (option
    A of He et al. 2016, §4.2): it takes every stride-th row and column of the input, and 0 in the added channels.
    Raises ConfigError if features < inputs.
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
        """Return shortcut(x) + factor · branch, where `branch` is the output of the block's branch."""
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.features - x.shape[1]))
        return shortcut + (branch if self.factor is None else self.factor * branch)


class BasicBlock(Residual):
    """A residual block whose branch is convolution, norm, activation, convolution, norm; the activation follows the
    sum.

    Raises ConfigError as `Residual` does and, with `arch.residual_init_zero`, as `start_at_zero` does.
    """

    def __init__(self, inputs: int, features: int, stride: int, builder: Builder) -> None:
        super().__init__(inputs, features, stride, builder)
        self.first = builder.block(builder.convolution(inputs, features, stride=stride), features)
        self.layer = builder.convolution(features, features)
        self.norm = make_norm(builder.norm, features)
        self.activation = make_activation(builder.act.name)
        if builder.arch.residual_init_zero:
            start_at_zero(self.norm)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the branch, add the shortcut, and apply the activation."""
        y: Tensor = self.activation(self.add(x, normalized(self.layer, self.norm, self.first(x))))
        return y


class PreActivationBlock(Residual):
    """A residual block whose branch is norm, activation, convolution, twice; no activation follows the sum."""

    def __init__(self, inputs: int, features: int, stride: int, builder: Builder) -> None:
        super().__init__(inputs, features, stride, builder)
        self.first = builder.pre_activation(builder.convolution(inputs, features, stride=stride), inputs)
        self.second = builder.pre_activation(builder.convolution(features, features), features)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the branch, and add the shortcut."""
        return self.add(x, self.second(self.first(x)))


def check_zero_init(arch: ArchConfig) -> None:
    """Raise ConfigError if `residual_init_zero` is combined with `pre_activation` or `skip_init`."""
    if arch.residual_init_zero:
        require(not arch.pre_activation, *ZERO_INIT, "a pre-activation block ends in a convolution")
        both = "with arch.skip_init=true both factors of a branch would be 0, and so its gradient for ever"
        require(not arch.skip_init, *ZERO_INIT, both)


def start_at_zero(norm: nn.Module) -> None:
    """Set a norm's γ to 0, in place. Raises ConfigError if it has none that is learned."""
    scales = [parameter for name, parameter in norm.named_parameters() if name.split(".")[-1] == "weight"]
    scale = "it needs a norm that learns a scale; arch.skip_init=true does the same without one"
    require(bool(scales), *ZERO_INIT, scale)
    nn.init.zeros_(scales[0])
