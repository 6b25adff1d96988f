"""Small convolutional network."""

from itertools import pairwise

from torch import nn

from bnexp.models.block import Builder, Shape, chain, require_side


def convnet(builder: Builder, shape: Shape, classes: int) -> nn.Module:
    """Make a convolutional network, which maps images (N, C, H, W) to logits (N, classes). shape: (C, H, W).

    For each width in `arch.channels` it has a 3×3 convolution with norm, activation and 2×2 max-pool; then a dense
    block (`Builder.dense`) of `arch.dense` units and a linear classifier. Raises ConfigError for images with a side of
    fewer than 2 ** len(arch.channels) pixels, of which the pools would leave nothing.
    """
    (inputs, height, width), widths, dense = shape, builder.arch.channels, builder.arch.dense
    smallest = 2 ** len(widths)
    require_side(shape, smallest, f"arch.channels={widths} halves an image {len(widths)} times: it")
    pairs = pairwise([inputs, *widths])
    blocks = (builder.block(builder.convolution(n, m), m, nn.MaxPool2d(2)) for n, m in pairs)
    values = widths[-1] * (height // smallest) * (width // smallest)
    return chain(
        convolutions=nn.Sequential(*blocks),
        flat=nn.Flatten(),
        dense=builder.dense([values, dense])[0],
        classifier=nn.Linear(dense, classes),
    )
