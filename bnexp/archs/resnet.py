"""Residual networks for small images (He et al. 2016, "Deep residual learning for image recognition", §4.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnexp.activations import make_activation
from bnexp.archs.block import has_bias, make_block, make_pre_activation
from bnexp.config import ActConfig, ArchConfig, ConfigError, NormConfig
from bnexp.norms import make_norm


class ResNet(nn.Module):
    """(N, C, H, W) → (N, classes): a 3×3 convolution with norm and activation; a stage for every width, each of n
    residual blocks of two 3×3 convolutions, the first of a later stage with stride 2; the mean over positions; a
    classifier. With three stages the depth is 6n + 2.

    `pre_activation`: norm and activation stand before each convolution, and once more after the last block (He et al.
    2016, "Identity mappings"). `residual_init_zero`: the last γ of a block starts at 0 (Goyal et al. 2017, §5.1).
    `skip_init`: a learned factor on a block's branch that starts at 0 (De & Smith 2020). Raises ConfigError for
    another depth, and for `residual_init_zero` where the branch doesn't end in a γ.
    """

    def __init__(
        self, arch: ArchConfig, norm: NormConfig, act: ActConfig, shape: tuple[int, int, int], classes: int
    ) -> None:
        super().__init__()
        widths, blocks = arch.channels, blocks_a_stage(arch)
        if arch.residual_init_zero and arch.pre_activation:
            raise ConfigError(
                "arch.residual_init_zero=true is not allowed: a pre-activation block ends in a convolution"
            )
        if arch.residual_init_zero and arch.skip_init:
            raise ConfigError(
                "arch.residual_init_zero=true is not allowed: with arch.skip_init=true both factors of a branch would "
                "be 0, and so its gradient for ever"
            )
        first = nn.Conv2d(shape[0], widths[0], 3, padding=1, bias=has_bias(arch, norm))
        block = PreActivationBlock if arch.pre_activation else BasicBlock
        self.first = first if arch.pre_activation else make_block(first, widths[0], arch, norm, act)
        self.stages = nn.ModuleList()
        features = widths[0]
        for stage, width in enumerate(widths):
            strides = [1 if stage == 0 else 2] + [1] * (blocks - 1)
            inputs = [features] + [width] * (blocks - 1)
            self.stages.append(
                nn.Sequential(
                    *(block(n, width, stride, arch, norm, act) for n, stride in zip(inputs, strides, strict=True))
                )
            )
            features = width
        self.last = make_block(nn.Identity(), features, arch, norm, act) if arch.pre_activation else nn.Identity()
        self.classifier = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.classifier(self.last(x).mean((2, 3)))
        return logits


class Residual(nn.Module):
    """x → shortcut(x) + factor · branch(x), where the shortcut has no parameters (option A of §4.2): every second
    position where the branch has stride 2, and 0 in new channels.
    """

    def __init__(self, inputs: int, features: int, stride: int, skip_init: bool) -> None:
        super().__init__()
        if features < inputs:
            raise ConfigError(
                f"arch.channels narrows from {inputs} to {features}, which is not allowed: a shortcut of arch=resnet "
                "adds channels and takes none away"
            )
        self.features, self.stride = features, stride
        self.factor = nn.Parameter(torch.zeros(())) if skip_init else None

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.features - x.shape[1]))
        return shortcut + (branch if self.factor is None else self.factor * branch)


class BasicBlock(Residual):
    """Convolution, norm, activation, convolution, norm; the activation once more on the sum."""

    def __init__(
        self, inputs: int, features: int, stride: int, arch: ArchConfig, norm: NormConfig, act: ActConfig
    ) -> None:
        super().__init__(inputs, features, stride, arch.skip_init)
        first, second = convolutions(inputs, features, stride, has_bias(arch, norm))
        self.first = make_block(first, features, arch, norm, act)
        self.layer = second
        self.norm = make_norm(norm, features)
        self.activation = make_activation(act.name)
        if arch.residual_init_zero:
            start_at_zero(self.norm)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.add(x, self.norm(self.layer(self.first(x)))))
        return y


class PreActivationBlock(Residual):
    """Norm, activation, convolution, twice; nothing on the sum."""

    def __init__(
        self, inputs: int, features: int, stride: int, arch: ArchConfig, norm: NormConfig, act: ActConfig
    ) -> None:
        super().__init__(inputs, features, stride, arch.skip_init)
        first, second = convolutions(inputs, features, stride, has_bias(arch, norm))
        self.first = make_pre_activation(first, inputs, norm, act)
        self.second = make_pre_activation(second, features, norm, act)

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.second(self.first(x)))


def convolutions(inputs: int, features: int, stride: int, bias: bool) -> tuple[nn.Conv2d, nn.Conv2d]:
    """The two of a block."""
    first = nn.Conv2d(inputs, features, 3, stride, padding=1, bias=bias)
    return first, nn.Conv2d(features, features, 3, padding=1, bias=bias)


def blocks_a_stage(arch: ArchConfig) -> int:
    step = 2 * len(arch.channels)
    depth = arch.depth or 0
    if depth <= 2 or (depth - 2) % step:
        allowed = ", ".join(str(2 + step * n) for n in range(1, 5))
        raise ConfigError(f"arch.depth={arch.depth} is not allowed: arch=resnet has {step}n + 2 layers: {allowed}, …")
    return (depth - 2) // step


def start_at_zero(norm: nn.Module) -> None:
    """Its γ."""
    scales = [parameter for name, parameter in norm.named_parameters() if name.split(".")[-1] == "weight"]
    if not scales:
        raise ConfigError(
            "arch.residual_init_zero=true is not allowed: it needs a norm that learns a scale; "
            "arch.skip_init=true does the same without one"
        )
    nn.init.zeros_(scales[0])
