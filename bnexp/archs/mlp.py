"""Fully connected network."""

from itertools import cycle, islice, pairwise
from math import prod

from torch import Tensor, nn

from bnexp.archs.block import has_bias, make_block
from bnexp.config import ActConfig, ArchConfig, ConfigError, NormConfig
from bnexp.norms import IMAGES_ONLY


class MLP(nn.Module):
    """(N, C, H, W) → (N, classes): hidden layers of `arch.hidden` units, repeated to `arch.depth` layers where it is
    given, each with norm and activation; a classifier without. Raises ConfigError for a norm that needs images.
    """

    def __init__(
        self, arch: ArchConfig, norm: NormConfig, act: ActConfig, shape: tuple[int, int, int], classes: int
    ) -> None:
        super().__init__()
        if norm.name in IMAGES_ONLY:
            raise ConfigError(f"norm={norm.name} means nothing for arch=mlp: it needs images, as in arch=convnet")
        widths = [prod(shape), *islice(cycle(arch.hidden), arch.depth or len(arch.hidden))]
        bias = has_bias(arch, norm)
        self.hidden = nn.Sequential(
            *(make_block(nn.Linear(n, m, bias=bias), m, arch, norm, act) for n, m in pairwise(widths))
        )
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.hidden(x.flatten(1)))
        return logits
