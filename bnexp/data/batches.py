"""Which examples make up each batch, and how they are augmented. Both depend only on the seed and the step."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bnexp.runs.config import RunConfig
from bnexp.runs.distributed import shard
from bnexp.runs.seeds import generator

AHEAD = 64  # largest number of steps whose batches are drawn and copied at once: each copy has a fixed cost
INDICES = 2**21  # about the largest number of indices that are drawn at once: 16 MiB
PADDING = 4  # pixels around an image that a crop may reach into (He et al. 2016, §4.2)


Examples = tuple[Tensor, Tensor, Tensor | None]  # images (N, C, H, W), labels (N,), conditions (N,) or None


@dataclass(frozen=True)
class Batch:
    """The batch of one step for each of S members, with B examples each.

    index: positions in the training set, int64 (S, B). crop: as `draw_crop` returns it for each member, int64 (S, B,
    3), or None without augmentation.
    """

    index: Tensor
    crop: Tensor | None


class Order:
    """The order in which one member sees its examples.

    Every epoch shuffles them anew; a batch may span two epochs, so that all batches have the same size. examples:
    number of images in the training set.
    """

    def __init__(self, seed: int, examples: int, batch_size: int) -> None:
        self.seed, self.examples, self.batch_size = seed, examples, batch_size
        self.epoch, self.shuffle = -1, torch.empty(0, dtype=torch.int64)  # the epoch in the cache, and its order

    def batch(self, step: int) -> Tensor:
        """Return the indices (B,) of the batch for one step, counted from 0."""
        return self.batches(step, 1)[0]

    def batches(self, step: int, count: int) -> Tensor:
        """Return the indices (count, B) of the batches for `count` steps, of which `step` is the first."""
        first, end = step * self.batch_size, (step + count) * self.batch_size
        epochs = range(first // self.examples, (end - 1) // self.examples + 1)
        starts = {epoch: epoch * self.examples for epoch in epochs}
        parts = [self.shuffle_of(epoch)[max(first - start, 0) : end - start] for epoch, start in starts.items()]
        return torch.cat(parts).view(count, self.batch_size)

    def shuffle_of(self, epoch: int) -> Tensor:
        """Return the order of all N examples in an epoch, int64 (N,). The order computed last is cached."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.shuffle = torch.randperm(self.examples, generator=generator(self.seed, "order", epoch))
        return self.shuffle


class Batches:
    """The batches of a stack's members, each drawn with its member's seed; under torchrun, this process's shard."""

    def __init__(self, seeds: list[int], examples: int, batch_size: int, augment: bool, device: torch.device) -> None:
        self.orders = [Order(seed, examples, batch_size) for seed in seeds]
        self.augment, self.device = augment, device
        self.ahead = max(1, min(AHEAD, INDICES // (len(seeds) * batch_size)))  # steps whose batches are drawn at once
        self.drawn: list[Batch] = []  # the batches of the steps from `first` on
        self.first = 0

    def keep(self, rows: list[int]) -> None:
        """Remove all members except those with these row numbers, and order the members like `rows`."""
        self.orders, self.drawn = [self.orders[row] for row in rows], []

    def batch(self, step: int) -> Batch:
        """Return the batch of one step, counted from 0, on the device. Batches of several steps are drawn at once."""
        if not 0 <= step - self.first < len(self.drawn):
            self.first, self.drawn = step, self.draw(step)
        return self.drawn[step - self.first]

    def draw(self, first: int) -> list[Batch]:
        """Return the batches of `ahead` steps, of which `first` is the first, on the device."""
        index = self.moved(torch.stack([order.batches(first, self.ahead) for order in self.orders], 1))
        if not self.augment:
            return [Batch(shard(rows), None) for rows in index]
        steps = range(first, first + self.ahead)
        crop = self.moved(torch.stack([torch.stack([draw_crop(order, s) for order in self.orders]) for s in steps]))
        return [Batch(shard(rows), shard(crops)) for rows, crops in zip(index, crop, strict=True)]

    def moved(self, tensor: Tensor) -> Tensor:
        """Return a tensor on the device. CUDA copies it from pinned memory while computing: the loop doesn't wait."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)


def draw_crop(order: Order, step: int) -> Tensor:
    """Draw for each image of a batch the top row and left column of its crop (0 to 8), and its flip (0 or 1).

    Returns int64 (B, 3), the same for the same seed and step.
    """
    random = generator(order.seed, "augment", step)
    places = torch.randint(0, 2 * PADDING + 1, (order.batch_size, 2), generator=random)
    return torch.cat([places, torch.randint(0, 2, (order.batch_size, 1), generator=random)], 1)


def gather(index: Tensor, crop: Tensor | None, train: Examples) -> Examples:
    """Return the examples at the positions `index` (N,) of the training set, after `flip_crop` unless crop is None."""
    images, labels, conditions = train
    pixels = select(images, index)
    pixels = pixels if crop is None else flip_crop(pixels, crop)
    return pixels, labels[index], None if conditions is None else conditions[index]


def select(images: Tensor, index: Tensor) -> Tensor:
    """Return images[index] (N, C, H, W). index_select does it ten times as fast where an image is contiguous."""
    if images.is_contiguous():
        return images.index_select(0, index)
    return images.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)  # channels_last


def flip_crop(pixels: Tensor, crop: Tensor) -> Tensor:
    """Augment images (B, C, H, W): add 4 black pixels on each side, crop to (H, W), mirror those with flip 1.

    crop: as `draw_crop` returns it, int64 (B, 3).
    """
    count, channels, height, width = pixels.shape
    columns = torch.arange(width, device=pixels.device)
    columns = torch.where(crop[:, 2:] == 1, width - 1 - columns, columns) + crop[:, 1:2]  # (B, W)
    rows = torch.arange(height, device=pixels.device) + crop[:, :1]  # (B, H)
    images = torch.arange(count, device=pixels.device)[:, None, None, None]
    channel = torch.arange(channels, device=pixels.device)[None, :, None, None]
    return F.pad(pixels, (PADDING,) * 4)[images, channel, rows[:, None, :, None], columns[:, None, None, :]]


def batches_of(configs: list[RunConfig], examples: int, device: torch.device) -> Batches:
    """Make the batches of a stack. examples: number of images in the training set.

    configs: of the members; batch size and augmentation are those of the first, which all members share.
    """
    config, seeds = configs[0], [config.seed for config in configs]
    return Batches(seeds, examples, config.batch_size, config.dataset.augment != "none", device)
