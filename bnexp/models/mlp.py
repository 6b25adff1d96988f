"""Fully connected network."""

from itertools import cycle, islice
from math import prod

from torch import nn

from bnexp.models.block import Builder, Shape, chain
from bnexp.models.norm_registry import find_norm
from bnexp.runs.config import ConfigError


def mlp(builder: Builder, shape: Shape, classes: int) -> nn.Module:
    """Make a fully connected network, which maps images (N, C, H, W) to logits (N, classes). shape: (C, H, W).

    Its hidden layers, each with norm and activation, have the widths `arch.hidden`; if `arch.depth` is set, there are
    that many hidden layers, and the widths are repeated cyclically. A linear classifier follows. Raises ConfigError for
    a norm that needs images.
    """
    arch, norm = builder.arch, builder.norm
    if find_norm(norm).images_only:
        raise ConfigError(f"norm={norm.name} means nothing for arch=mlp: it needs images, as in arch=convnet")
    widths = [prod(shape), *islice(cycle(arch.hidden), arch.depth or len(arch.hidden))]
    return chain(flat=nn.Flatten(), hidden=builder.dense(widths), classifier=nn.Linear(widths[-1], classes))
