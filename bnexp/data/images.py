"""What a source of images returns."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Labelled images.

    pixels: uint8 (N, C, H, W), from 0 to `Source.peak`; labels: int64 (N,); condition: int64 (N,), the place in
    `dataset.conditions` of each image's condition, or None where there are none.
    """

    pixels: Tensor
    labels: Tensor
    condition: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: slice | Tensor) -> "Images":
        condition = None if self.condition is None else self.condition[which]
        return Images(self.pixels[which], self.labels[which], condition)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> "Images":
        """Move them to a device, with the pixels in this memory format."""
        condition = None if self.condition is None else self.condition.to(device)
        return Images(self.pixels.contiguous(memory_format=memory_format).to(device), self.labels.to(device), condition)


LeftOut = dict[str, Counter[str]]  # place in a folder of images → reason → number of files that weren't read


@dataclass(frozen=True)
class Source:
    """A data set as it is published. left_out: of a folder of images, else None; notice: a line about its cache."""

    train: Images
    test: Images
    classes: tuple[str, ...]
    peak: int = 255  # the pixel value that becomes 1
    left_out: LeftOut | None = None
    notice: str | None = None

    def map(self, change: Callable[[Images], Images], **fields: Any) -> "Source":
        """A copy with the images of both parts changed, and other fields replaced."""
        return replace(self, train=change(self.train), test=change(self.test), **fields)


@dataclass(frozen=True)
class Contents:
    """What a folder of images was read as. classes: class → split (train, validation, test) → number of images."""

    path: str
    classes: dict[str, dict[str, int]]
    left_out: LeftOut
    notice: str | None

    def record(self) -> dict[str, Any]:
        """Describe it for a run's record: the classes, and the number of files left out by reason."""
        return {"classes": self.classes, "left_out": dict(sum(self.left_out.values(), Counter[str]()))}
