"""Densely connected networks for small images (Huang et al. 2017)."""

import torch
from torch import Tensor, nn

from bnexp.archs.block import has_bias, make_block, make_pre_activation
from bnexp.config import ActConfig, ArchConfig, ConfigError, NormConfig

START = 16  # channels of the first convolution
BLOCKS = 3


class DenseNet(nn.Module):
    """(N, C, H, W) → (N, classes): a 3×3 convolution to 16 channels; three blocks of n layers, each of norm,
    activation and a 3×3 convolution whose `arch.growth` channels join its input's; between blocks norm, activation, a
    1×1 convolution and a 2×2 average-pool; norm and activation; the mean over positions; a classifier. The depth is
    3n + 4. Raises ConfigError for another depth, and for images that the pooling would use up.
    """

    def __init__(
        self, arch: ArchConfig, norm: NormConfig, act: ActConfig, shape: tuple[int, int, int], classes: int
    ) -> None:
        super().__init__()
        layers = layers_a_block(arch)
        smallest = 2 ** (BLOCKS - 1)
        if min(shape[1:]) < smallest:
            raise ConfigError(f"arch=densenet needs at least {smallest}×{smallest} pixels, not {shape[1]}×{shape[2]}")
        bias, features = has_bias(arch, norm), START
        self.first = nn.Conv2d(shape[0], features, 3, padding=1, bias=bias)
        parts: list[nn.Module] = []
        for number in range(BLOCKS):
            if number:
                parts.append(make_pre_activation(nn.Conv2d(features, features, 1, bias=bias), features, norm, act))
                parts.append(nn.AvgPool2d(2))
            inputs = range(features, features + layers * arch.growth, arch.growth)
            parts.append(nn.Sequential(*(DenseLayer(n, arch, norm, act) for n in inputs)))
            features += layers * arch.growth
        self.parts = nn.Sequential(*parts)
        self.last = make_block(nn.Identity(), features, arch, norm, act)
        self.classifier = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.last(self.parts(self.first(x))).mean((2, 3)))
        return logits


class DenseLayer(nn.Module):
    """x (N, n, H, W) → (N, n + growth, H, W): x itself, and what norm, activation and a 3×3 convolution make of it."""

    def __init__(self, inputs: int, arch: ArchConfig, norm: NormConfig, act: ActConfig) -> None:
        super().__init__()
        layer = nn.Conv2d(inputs, arch.growth, 3, padding=1, bias=has_bias(arch, norm))
        self.branch = make_pre_activation(layer, inputs, norm, act)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.branch(x)], 1)


def layers_a_block(arch: ArchConfig) -> int:
    depth = arch.depth or 0
    if depth <= 4 or (depth - 4) % BLOCKS:
        raise ConfigError(f"arch.depth={arch.depth} is not allowed: arch=densenet has 3n + 4 layers: 7, 10, … 40, …")
    return (depth - 4) // BLOCKS
