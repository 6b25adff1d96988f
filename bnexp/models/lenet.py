"""LeNet with batch normalization, as in Dive into Deep Learning (Zhang et al. 2023, §8.5)."""

from torch import nn

from bnexp.models.block import Builder, Shape, chain
from bnexp.runs.config import ConfigError


def lenet(builder: Builder, shape: Shape, classes: int) -> nn.Module:
    """Make LeNet, which maps images (N, C, H, W) to logits (N, classes). shape: (C, H, W).

    For each width in `arch.channels` it has a 5×5 convolution without padding, with norm, activation and 2×2
    average-pool; then dense blocks (`Builder.dense`) of the widths `arch.hidden` and a linear classifier. Raises
    ConfigError for images so small that convolutions and pools would leave no position.
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
