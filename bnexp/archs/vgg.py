"""VGG-A (Simonyan & Zisserman 2015, table 1) for images of 32 pixels."""

from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from bnexp.archs.block import has_bias, make_block, norm_for_vectors
from bnexp.config import ActConfig, ArchConfig, ConfigError, NormConfig

POOLED = (0, 1, 3, 5, 7)  # convolutions that a 2×2 max-pool follows

SMALLEST = 17  # pixels: 17, 9, 5, 3, 2


class VGG(nn.Module):
    """(N, C, H, W) → (N, classes): eight 3×3 convolutions with norm and activation, five max-pools; two dense layers
    with norm and activation, 512 wide where ImageNet's have 4,096; a classifier. A pool rounds up, so that 28 pixels,
    which 32 is 2⁵ for, leave one as well. Raises ConfigError unless there are eight widths, and for images so small
    that the last convolutions would see a single pixel.
    """

    def __init__(
        self, arch: ArchConfig, norm: NormConfig, act: ActConfig, shape: tuple[int, int, int], classes: int
    ) -> None:
        super().__init__()
        if len(arch.channels) != 8:
            raise ConfigError(f"arch.channels={arch.channels} is not allowed: arch=vgg has 8 convolutions")
        if min(shape[1:]) < SMALLEST:
            raise ConfigError(f"arch=vgg needs at least {SMALLEST}×{SMALLEST} pixels, not {shape[1]}×{shape[2]}")
        channels, *size = shape
        self.convolutions = nn.ModuleList()
        for number, features in enumerate(arch.channels):
            layer = nn.Conv2d(channels, features, 3, padding=1, bias=has_bias(arch, norm))
            self.convolutions.append(make_block(layer, features, arch, norm, act))
            channels = features
            size = [-(-side // 2) for side in size] if number in POOLED else size
        flat = norm_for_vectors(norm)
        bias = has_bias(arch, flat)
        first, second = (
            nn.Linear(channels * prod(size), arch.dense, bias=bias),
            nn.Linear(arch.dense, arch.dense, bias=bias),
        )
        self.dense = nn.Sequential(*(make_block(layer, arch.dense, arch, flat, act) for layer in (first, second)))
        self.classifier = nn.Linear(arch.dense, classes)

    def forward(self, x: Tensor) -> Tensor:
        for number, block in enumerate(self.convolutions):
            x = block(x)
            if number in POOLED:
                x = F.max_pool2d(x, 2, ceil_mode=True)
        logits: Tensor = self.classifier(self.dense(x.flatten(1)))
        return logits
