"""Conditions: every image of a data set once in each of the versions that `dataset.conditions` names."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bnexp.data.images import Images
from bnexp.runs.seeds import generator

NOISE = 0.3  # standard deviation, of the peak


def edges(pixels: Tensor, peak: int) -> Tensor:
    """A quarter of the gradient's length by Sobel's filters, of each channel: a step from 0 to the peak stays in range.

    Pixels, uint8 (N, C, H, W), and their peak → the same shape, like every condition here.
    """
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
    filters = torch.stack([across, across.T])[:, None]
    padded = F.pad(pixels.float().flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    length = F.conv2d(padded, filters).square().sum(1).sqrt()
    return length.view(pixels.shape).round().clamp(0, peak).to(torch.uint8)


def noise(pixels: Tensor, peak: int) -> Tensor:
    """Gaussian noise, always the same for an image of a split; the n-th images of all splits share theirs."""
    added = NOISE * peak * torch.randn(pixels.shape, generator=generator(0, "conditions", "noise"))
    return (pixels + added).round().clamp(0, peak).to(torch.uint8)


def blurred(pixels: Tensor, peak: int) -> Tensor:
    """The mean of 3×3 pixels; pixels beyond the edge are black."""
    return F.avg_pool2d(pixels.float(), 3, stride=1, padding=1).round().to(torch.uint8)


CONDITIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "plain": lambda pixels, peak: pixels,
    "inverted": lambda pixels, peak: peak - pixels,
    "rotated90": lambda pixels, peak: pixels.rot90(1, (2, 3)),  # counter-clockwise
    "flipped": lambda pixels, peak: pixels.flip(3),
    "edges": edges,
    "noise": noise,
    "blurred": blurred,
}


def in_conditions(images: Images, names: list[str], peak: int) -> Images:
    """N images → len(names) · N: all of them in the first condition, then all in the second, and so on."""
    pixels = torch.cat([CONDITIONS[name](images.pixels, peak) for name in names])
    return Images(pixels, images.labels.repeat(len(names)), torch.arange(len(names)).repeat_interleave(len(images)))
