"""What a source of images hands over."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Images:
    """pixels: uint8 (N, C, H, W), from 0 to `Source.peak`; labels: int64 (N,); condition: int64 (N,), which style of
    `dataset.conditions` an image has, or None where there are none.
    """

    pixels: Tensor
    labels: Tensor
    condition: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: slice | Tensor) -> "Images":
        condition = None if self.condition is None else self.condition[which]
        return Images(self.pixels[which], self.labels[which], condition)


@dataclass(frozen=True)
class Source:
    """left_out: of a folder, how many of its files and folders weren't read, by reason and split, else None; notice:
    what is to be said about its cache.
    """

    train: Images
    test: Images
    classes: tuple[str, ...]
    peak: int = 255  # the pixel value that becomes 1
    left_out: dict[str, dict[str, int]] | None = None
    notice: str | None = None


@dataclass(frozen=True)
class Contents:
    """What a folder of images was read as: the number of images by class and split (train, validation, test), and of
    what was left out by reason and split.
    """

    path: str
    classes: dict[str, dict[str, int]]
    left_out: dict[str, dict[str, int]]
    notice: str | None

    def record(self) -> dict[str, Any]:
        """For a run's record."""
        left_out = {reason: sum(counts.values()) for reason, counts in self.left_out.items()}
        return {"classes": self.classes, "left_out": left_out}
