"""VGG-A (Simonyan & Zisserman 2015, table 1), adapted to images of 32 pixels."""

from math import prod

from torch import nn

from bnexp.models.block import Builder, Shape, chain, require_side
from bnexp.runs.config import require

POOLED = (0, 1, 3, 5, 7)  # numbers, from 0, of the convolutions that a 2×2 max-pool follows
SMALLEST_SIDE = 17  # pixels; the first four pools leave 9, 5, 3 and 2


def vgg(builder: Builder, shape: Shape, classes: int) -> nn.Module:
    """Make VGG-A, which maps images (N, C, H, W) to logits (N, classes). shape: (C, H, W).

    It has eight 3×3 convolutions with norm and activation; five 2×2 max-pools, which round sizes up, so that images of
    28 pixels, like those of 32, end as a single position; two dense blocks (`Builder.dense`) of `arch.dense` units (512
    by default, 4,096 in the paper); a linear classifier.

    Raises ConfigError unless `arch.channels` has eight widths, and for images with a side of fewer than 17 pixels, of
    which the last two convolutions would see a single position.
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
