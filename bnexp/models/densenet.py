"""Densely connected networks for small images (Huang et al. 2017)."""

import torch
from torch import Tensor, nn

from bnexp.models.block import Builder, GlobalMean, Shape, chain, repetitions, require_side

FIRST_CHANNELS = 16  # output channels of the first convolution
BLOCKS = 3


def densenet(builder: Builder, shape: Shape, classes: int) -> nn.Module:
    """Make a DenseNet, which maps images (N, C, H, W) to logits (N, classes). shape: (C, H, W).

    It consists of a 3×3 convolution to 16 channels; three dense blocks of n layers (`DenseLayer`); between two blocks
    norm, activation, a 1×1 convolution and a 2×2 average-pool; norm and activation; the mean over positions; a linear
    classifier.

    Raises ConfigError unless `arch.depth` is 3n + 4 with n ≥ 1, and for images with a side of fewer than 4 pixels.
    """
    layers, features, growth = repetitions(builder.arch, BLOCKS, 4), FIRST_CHANNELS, builder.arch.growth
    require_side(shape, 2 ** (BLOCKS - 1), "arch=densenet")
    parts: list[nn.Module] = []
    for number in range(BLOCKS):
        if number:
            parts += [builder.pre_activation(builder.convolution(features, features, 1), features), nn.AvgPool2d(2)]
        end = features + layers * growth
        parts.append(nn.Sequential(*(DenseLayer(n, builder) for n in range(features, end, growth))))
        features = end
    return chain(
        first=builder.convolution(shape[0], FIRST_CHANNELS),
        parts=nn.Sequential(*parts),
        last=builder.block(nn.Identity(), features),
        mean=GlobalMean(),
        classifier=nn.Linear(features, classes),
    )


class DenseLayer(nn.Module):
    """A layer that appends `arch.growth` channels to its input: (N, inputs, H, W) → (N, inputs + growth, H, W).

    The new channels are computed from all channels of the input by norm, activation and a 3×3 convolution.
    """

    def __init__(self, inputs: int, builder: Builder) -> None:
        super().__init__()
        self.branch = builder.pre_activation(builder.convolution(inputs, builder.arch.growth), inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the input with the new channels."""
        return torch.cat([x, self.branch(x)], 1)
