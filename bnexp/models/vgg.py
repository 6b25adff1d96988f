"""VGG-A (Simonyan & Zisserman 2015, table 1) for images of 32 pixels."""

from math import prod

from torch import nn

from bnexp.models.block import Builder, Shape, chain, require_side
from bnexp.runs.config import require

POOLED = (0, 1, 3, 5, 7)  # convolutions that a 2×2 max-pool follows
SMALLEST_SIDE = 17  # pixels: 17, 9, 5, 3, 2


def vgg(builder: Builder, shape: Shape, classes: int) -> nn.Module:
    """Images (N, C, H, W) → logits (N, classes), by eight convolutions, two dense layers and a classifier.

    3×3 convolutions with norm and activation, and five max-pools that round up, so that 28 pixels also leave one; two
    dense layers of `arch.dense` units (512 where ImageNet's have 4,096) with norm and activation; a linear classifier.

    Raises ConfigError unless there are eight widths, and for images below 17 pixels, which the last convolutions would
    see as a single one.
    """
    (channels, *size), arch, blocks = shape, builder.arch, list[nn.Module]()
    require(len(arch.channels) == 8, "arch.channels", arch.channels, "arch=vgg has 8 convolutions")
    require_side(shape, SMALLEST_SIDE, "arch=vgg")
    for number, features in enumerate(arch.channels):
        pool = nn.MaxPool2d(2, ceil_mode=True) if number in POOLED else None
        blocks.append(builder.block(builder.convolution(channels, features), features, pool))
        channels, size = features, [-(-side // 2) for side in size] if pool else size
    return chain(
        convolutions=nn.Sequential(*blocks),
        flat=nn.Flatten(),
        dense=builder.dense([channels * prod(size), arch.dense, arch.dense]),
        classifier=nn.Linear(arch.dense, classes),
    )
