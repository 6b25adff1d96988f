"""Small convolutional network."""

from itertools import pairwise

from torch import nn

from bnexp.models.block import Builder, Shape, chain, require_side


def convnet(builder: Builder, shape: Shape, classes: int) -> nn.Module:
    """Images (N, C, H, W) → logits (N, classes), by convolutions, a dense layer and a classifier.

    A 3×3 convolution for each of `arch.channels`, each with norm, activation and 2×2 max-pool; a dense layer of
    `arch.dense` units with norm and activation; a linear classifier. Raises ConfigError for images too small to pool.
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
