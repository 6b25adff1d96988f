"""Conditions: transformed versions of images. A data set contains each image once in each of `dataset.conditions`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bnexp.data.images import Images
from bnexp.runs.seeds import generator

NOISE = 0.3  # standard deviation, as a fraction of the peak


def edges(pixels: Tensor, peak: int) -> Tensor:
    """Return the strength of edges: a quarter of the length of the gradient by Sobel's filters, in each channel.

    A horizontal or vertical edge between black and white gives `peak`; larger values are clipped to it. pixels: uint8
    (N, C, H, W) from 0 to `peak`; the result has the same shape and type, as in all conditions.
    """
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
    filters = torch.stack([across, across.T])[:, None]
    padded = F.pad(pixels.float().flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate")
    length = F.conv2d(padded, filters).square().sum(1).sqrt()
    return length.view(pixels.shape).round().clamp(0, peak).to(torch.uint8)


def noise(pixels: Tensor, peak: int) -> Tensor:
    """Return the pixels plus Gaussian noise with a standard deviation of 0.3 · peak, clipped to 0 to peak.

    The noise depends only on an image's position in its split, so the n-th images of all splits get the same.
    """
    added = NOISE * peak * torch.randn(pixels.shape, generator=generator(0, "conditions", "noise"))
    return (pixels + added).round().clamp(0, peak).to(torch.uint8)


def blurred(pixels: Tensor, peak: int) -> Tensor:
    """Return for each pixel the mean of the 3×3 pixels around it; pixels beyond the edge count as black."""
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
    """Return all images in the first of the named conditions, then all in the second, and so on: len(names) · N images.

    peak: the pixel value of white. The result's `condition` is the index of each image's condition in `names`.
    """
    pixels = torch.cat([CONDITIONS[name](images.pixels, peak) for name in names])
    return Images(pixels, images.labels.repeat(len(names)), torch.arange(len(names)).repeat_interleave(len(images)))
