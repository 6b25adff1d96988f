"""Styles of a data set: every image once in each of `dataset.conditions`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bnexp.datasets.images import Images
from bnexp.seeds import generator

NOISE = 0.3  # standard deviation, of the peak
Style = Callable[[Tensor, int], Tensor]  # pixels, uint8 (N, C, H, W), and their peak → the same kind


def edges(pixels: Tensor, peak: int) -> Tensor:
    """Length of the gradient by Sobel's filters, a channel at a time, a quarter of it: a full step stays in range."""
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
    filters = torch.stack([across, across.T])[:, None]
    count, channels, height, width = pixels.shape
    padded = F.pad(pixels.float().reshape(-1, 1, height, width), (1, 1, 1, 1), mode="replicate")
    length = F.conv2d(padded, filters).square().sum(1).sqrt()
    return length.view(count, channels, height, width).round().clamp(0, peak).to(torch.uint8)


def noise(pixels: Tensor, peak: int) -> Tensor:
    """Gaussian, the same for an image of a split whenever it is read; the n-th images of all splits share theirs."""
    added = NOISE * peak * torch.randn(pixels.shape, generator=generator(0, "conditions", "noise"))
    return (pixels + added).round().clamp(0, peak).to(torch.uint8)


def blurred(pixels: Tensor, peak: int) -> Tensor:
    """The mean of 3×3 pixels; beyond the edge there is black."""
    return F.avg_pool2d(pixels.float(), 3, stride=1, padding=1).round().to(torch.uint8)


CONDITIONS: dict[str, Style] = {
    "plain": lambda pixels, peak: pixels,
    "inverted": lambda pixels, peak: peak - pixels,
    "rotated90": lambda pixels, peak: pixels.rot90(1, (2, 3)),  # counter-clockwise
    "flipped": lambda pixels, peak: pixels.flip(3),
    "edges": edges,
    "noise": noise,
    "blurred": blurred,
}


def in_every_style(images: Images, names: list[str], peak: int) -> Images:
    """N images → len(names) · N, a style after the other."""
    count = len(images)
    return Images(
        torch.cat([CONDITIONS[name](images.pixels, peak) for name in names]),
        images.labels.repeat(len(names)),
        torch.arange(len(names)).repeat_interleave(count),
    )
