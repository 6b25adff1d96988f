"""The order of batches and their augmentation: from the seed and the step alone."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bnexp.runs.config import RunConfig
from bnexp.runs.distributed import shard
from bnexp.runs.seeds import generator

AHEAD = 64  # steps at most whose batches are drawn and moved to the device at once, where each move has its cost
INDICES = 2**21  # about so many at once: 16 MiB
PADDING = 4  # pixels around an image that a crop may reach into (He et al. 2016, §4.2)


@dataclass(frozen=True)
class Batch:
    """One batch for each of S members, of B examples each.

    index: the examples, int64 (S, B). crop: row, column and flip of each, int64 (S, B, 3), or None without
    augmentation.
    """

    index: Tensor
    crop: Tensor | None


class Order:
    """The batches of one member. Every epoch is shuffled anew; a batch may span two epochs, so that each is full."""

    def __init__(self, seed: int, examples: int, batch_size: int) -> None:
        self.seed, self.examples, self.batch_size = seed, examples, batch_size
        self.epoch, self.shuffle = -1, torch.empty(0, dtype=torch.int64)  # the last epoch asked for, and its order

    def batch(self, step: int) -> Tensor:
        """Indices (B,) of the batch that follows `step` updates."""
        return self.batches(step, 1)[0]

    def batches(self, step: int, count: int) -> Tensor:
        """Indices (count, B) of the batches that follow `step`, `step` + 1, … updates."""
        first, end = step * self.batch_size, (step + count) * self.batch_size
        epochs = range(first // self.examples, (end - 1) // self.examples + 1)
        starts = {epoch: epoch * self.examples for epoch in epochs}
        parts = [self.shuffle_of(epoch)[max(first - start, 0) : end - start] for epoch, start in starts.items()]
        return torch.cat(parts).view(count, self.batch_size)

    def shuffle_of(self, epoch: int) -> Tensor:
        """The order of all examples in an epoch, int64 (N,)."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.shuffle = torch.randperm(self.examples, generator=generator(self.seed, "order", epoch))
        return self.shuffle


class Batches:
    """The batches of a stack's members, each in the order of its own seed; under torchrun this process's share."""

    def __init__(self, seeds: list[int], examples: int, batch_size: int, augment: bool, device: torch.device) -> None:
        self.orders = [Order(seed, examples, batch_size) for seed in seeds]
        self.augment, self.device = augment, device
        self.ahead = max(1, min(AHEAD, INDICES // (len(seeds) * batch_size)))  # steps
        self.drawn: list[Batch] = []  # the batches of so many steps, from `first` on
        self.first = 0

    def keep(self, rows: list[int]) -> None:
        """Continue with these members alone."""
        self.orders, self.drawn = [self.orders[row] for row in rows], []

    def batch(self, step: int) -> Batch:
        """The batch that follows `step` updates, on the device."""
        if not 0 <= step - self.first < len(self.drawn):
            self.first, self.drawn = step, self.draw(step)
        return self.drawn[step - self.first]

    def draw(self, first: int) -> list[Batch]:
        """The batches of the next steps."""
        index = self.moved(torch.stack([order.batches(first, self.ahead) for order in self.orders], 1))
        if not self.augment:
            return [Batch(shard(rows), None) for rows in index]
        steps = range(first, first + self.ahead)
        crop = self.moved(torch.stack([torch.stack([draw_crop(order, s) for order in self.orders]) for s in steps]))
        return [Batch(shard(rows), shard(crops)) for rows, crops in zip(index, crop, strict=True)]

    def moved(self, tensor: Tensor) -> Tensor:
        """On the device. CUDA copies from pinned memory while it computes: the loop doesn't wait for it."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)


def draw_crop(order: Order, step: int) -> Tensor:
    """Draw row, column and flip for every image of a batch, int64 (B, 3)."""
    random = generator(order.seed, "augment", step)
    places = torch.randint(0, 2 * PADDING + 1, (order.batch_size, 2), generator=random)
    return torch.cat([places, torch.randint(0, 2, (order.batch_size, 1), generator=random)], 1)


def flip_crop(pixels: Tensor, crop: Tensor) -> Tensor:
    """Shift each image (B, C, H, W) by up to 4 pixels, black beyond its edge, and mirror those with a flip of 1."""
    count, channels, height, width = pixels.shape
    columns = torch.arange(width, device=pixels.device)
    columns = torch.where(crop[:, 2:] == 1, width - 1 - columns, columns) + crop[:, 1:2]  # (B, W)
    rows = torch.arange(height, device=pixels.device) + crop[:, :1]  # (B, H)
    images = torch.arange(count, device=pixels.device)[:, None, None, None]
    channel = torch.arange(channels, device=pixels.device)[None, :, None, None]
    return F.pad(pixels, (PADDING,) * 4)[images, channel, rows[:, None, :, None], columns[:, None, None, :]]


def batches_of(configs: list[RunConfig], examples: int, device: torch.device) -> Batches:
    """Make the batches of a stack whose members have these configurations, from a training set of `examples` images."""
    config, seeds = configs[0], [config.seed for config in configs]
    return Batches(seeds, examples, config.batch_size, config.dataset.augment != "none", device)
