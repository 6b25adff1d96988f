"""What a source of images hands over."""

from dataclasses import dataclass

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
    train: Images
    test: Images
    classes: tuple[str, ...]
    peak: int = 255  # the pixel value that becomes 1
