"""Densely connected networks for small images (Huang et al. 2017)."""

import torch
from torch import Tensor, nn

from bnexp.models.block import Builder, GlobalMean, Shape, chain, repetitions, require_side

FIRST_CHANNELS = 16  # of the first convolution
BLOCKS = 3


def densenet(builder: Builder, shape: Shape, classes: int) -> nn.Module:
    """Images (N, C, H, W) → logits (N, classes), by layers that read what all layers before them in a block wrote.

    A 3×3 convolution to 16 channels; three blocks of n layers, each of norm, activation and a 3×3 convolution whose
    `arch.growth` channels join its input's; between blocks norm, activation, a 1×1 convolution and a 2×2 average-pool;
    norm and activation; the mean over positions; a linear classifier. The depth is 3n + 4.

    Raises ConfigError for another depth, and for images too small to pool.
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
    """x (N, n, H, W) → (N, n + growth, H, W): x itself, and what norm, activation and a 3×3 convolution make of it."""

    def __init__(self, inputs: int, builder: Builder) -> None:
        super().__init__()
        self.branch = builder.pre_activation(builder.convolution(inputs, builder.arch.growth), inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Join the input and the branch's channels."""
        return torch.cat([x, self.branch(x)], 1)
