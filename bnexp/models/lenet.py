"""LeNet, as Dive into Deep Learning (Zhang et al. 2023, §8.5) gives it batch normalization."""

from torch import nn

from bnexp.models.block import Builder, Shape, chain
from bnexp.runs.config import ConfigError


def lenet(builder: Builder, shape: Shape, classes: int) -> nn.Module:
    """Images (N, C, H, W) → logits (N, classes), by convolutions, dense layers and a classifier.

    A 5×5 convolution without padding for each of `arch.channels`, each with norm, activation and 2×2 average-pool;
    dense layers of `arch.hidden` units with norm and activation; a linear classifier. Raises ConfigError for images of
    which nothing would be left.
    """
    (channels, height, width), arch, blocks = shape, builder.arch, list[nn.Module]()
    for features in arch.channels:
        layer = nn.Conv2d(channels, features, 5, bias=builder.bias)
        blocks.append(builder.block(layer, features, nn.AvgPool2d(2)))
        channels, height, width = features, (height - 4) // 2, (width - 4) // 2
    if min(height, width) < 1:
        image = f"an image of {shape[1]}×{shape[2]} pixels"
        raise ConfigError(f"arch=lenet with arch.channels={arch.channels} uses up {image}")
    return chain(
        convolutions=nn.Sequential(*blocks),
        flat=nn.Flatten(),
        hidden=builder.dense([channels * height * width, *arch.hidden]),
        classifier=nn.Linear(arch.hidden[-1], classes),
    )
