"""Small convolutional network."""

import torch.nn.functional as F
from torch import Tensor, nn

from bnexp.archs.block import has_bias, make_block, norm_for_vectors
from bnexp.config import ActConfig, ArchConfig, ConfigError, NormConfig


class ConvNet(nn.Module):
    """(N, C, H, W) → (N, classes): 3×3 convolutions, each with norm, activation and 2×2 max-pool; a dense layer with
    norm and activation; a classifier. A norm that needs images (instance) leaves the dense layer without.
    Raises ConfigError for images that the pooling would use up.
    """

    def __init__(
        self, arch: ArchConfig, norm: NormConfig, act: ActConfig, shape: tuple[int, int, int], classes: int
    ) -> None:
        super().__init__()
        channels, height, width = shape
        smallest = 2 ** len(arch.channels)
        if min(height, width) < smallest:
            raise ConfigError(
                f"arch.channels={arch.channels} halves an image {len(arch.channels)} times: it needs at least "
                f"{smallest}×{smallest} pixels, not {height}×{width}"
            )
        self.convolutions = nn.ModuleList()
        for features in arch.channels:
            layer = nn.Conv2d(channels, features, 3, padding=1, bias=has_bias(arch, norm))
            self.convolutions.append(make_block(layer, features, arch, norm, act))
            channels, height, width = features, height // 2, width // 2
        flat = norm_for_vectors(norm)
        dense = nn.Linear(channels * height * width, arch.dense, bias=has_bias(arch, flat))
        self.dense = make_block(dense, arch.dense, arch, flat, act)
        self.classifier = nn.Linear(arch.dense, classes)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.convolutions:
            x = F.max_pool2d(block(x), 2)
        logits: Tensor = self.classifier(self.dense(x.flatten(1)))
        return logits
