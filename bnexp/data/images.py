"""Labelled images, and what the loader of a data set returns."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Labelled images.

    pixels: uint8 (N, C, H, W), from 0 to `Source.peak`. labels: int64 (N,). condition: the index in
    `dataset.conditions` of each image's condition, int64 (N,); None without conditions.
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
        """Return the images on a device, with the pixels in this memory format."""
        condition = None if self.condition is None else self.condition.to(device)
        return Images(self.pixels.contiguous(memory_format=memory_format).to(device), self.labels.to(device), condition)


LeftOut = dict[str, Counter[str]]  # files not read: part of the folder → reason → their number


@dataclass(frozen=True)
class Source:
    """A data set as it is published, with training and test images.

    classes: their names, by label. left_out: for a folder of images, how many files were not read, and why; else None.
    notice: a message for the user about the cache of a folder of images, or None.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    peak: int = 255  # the pixel value of white, which is scaled to 1
    left_out: LeftOut | None = None
    notice: str | None = None

    def map(self, change: Callable[[Images], Images], **fields: Any) -> "Source":
        """Return a copy with `change` applied to training and test images, and with other fields replaced."""
        return replace(self, train=change(self.train), test=change(self.test), **fields)


@dataclass(frozen=True)
class Contents:
    """A summary of a folder of images.

    path: the folder. classes: class → split (train, validation, test) → number of images. left_out: how many files were
    not read, and why. notice: a message for the user about the cache, or None.
    """

    path: str
    classes: dict[str, dict[str, int]]
    left_out: LeftOut
    notice: str | None

    def record(self) -> dict[str, Any]:
        """Return an entry of run.json: the number of images by class and split, and of files left out by reason."""
        return {"classes": self.classes, "left_out": dict(sum(self.left_out.values(), Counter[str]()))}
