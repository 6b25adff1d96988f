"""LeNet, as Dive into Deep Learning (Zhang et al. 2023, §8.5) gives it batch normalization."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from bnexp.archs.block import has_bias, make_block, norm_for_vectors
from bnexp.config import ActConfig, ArchConfig, ConfigError, NormConfig


class LeNet(nn.Module):
    """(N, C, H, W) → (N, classes): 5×5 convolutions without padding, each with norm, activation and 2×2 average-pool;
    dense layers with norm and activation; a classifier. Raises ConfigError for images that this would use up.
    """

    def __init__(
        self, arch: ArchConfig, norm: NormConfig, act: ActConfig, shape: tuple[int, int, int], classes: int
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.convolutions = nn.ModuleList()
        for features in arch.channels:
            layer = nn.Conv2d(channels, features, 5, bias=has_bias(arch, norm))
            self.convolutions.append(make_block(layer, features, arch, norm, act))
            channels, height, width = features, (height - 4) // 2, (width - 4) // 2
        if min(height, width) < 1:
            raise ConfigError(
                f"arch=lenet with arch.channels={arch.channels} uses up an image of {shape[1]}×{shape[2]} pixels"
            )
        flat = norm_for_vectors(norm)
        widths = [channels * height * width, *arch.hidden]
        bias = has_bias(arch, flat)
        self.hidden = nn.Sequential(
            *(make_block(nn.Linear(n, m, bias=bias), m, arch, flat, act) for n, m in pairwise(widths))
        )
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.convolutions:
            x = F.avg_pool2d(block(x), 2)
        logits: Tensor = self.classifier(self.hidden(x.flatten(1)))
        return logits
