"""What a source of images hands over."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Images:
    """pixels: uint8 (N, C, H, W), from 0 to `Source.peak`; labels: int64 (N,)."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, which: slice | Tensor) -> "Images":
        return Images(self.pixels[which], self.labels[which])


@dataclass(frozen=True)
class Source:
    train: Images
    test: Images
    classes: tuple[str, ...]
    peak: int = 255  # the pixel value that becomes 1
