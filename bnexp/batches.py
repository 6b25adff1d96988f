"""The order of batches and their augmentation: from the seed and the step alone."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bnexp.parallel import shard
from bnexp.seeds import generator

PADDING = 4  # pixels around an image that a crop may reach into (He et al. 2016, §4.2)


@dataclass(frozen=True)
class Batch:
    """One batch of S members. index: int64 (S, B); crop: None, or int64 (S, B, 3) of row, column and flip."""

    index: Tensor
    crop: Tensor | None


class Order:
    """One member's batches. They continue across epochs, each with its own shuffle: a batch is never short."""

    def __init__(self, seed: int, examples: int, batch_size: int) -> None:
        self.seed, self.examples, self.batch_size = seed, examples, batch_size
        self.epoch, self.shuffle = -1, torch.empty(0, dtype=torch.int64)  # the last epoch asked for, and its order

    def batch(self, step: int) -> Tensor:
        """Indices of the batch that follows `step` updates, int64 (B,)."""
        epoch, offset = divmod(step * self.batch_size, self.examples)
        index = self.shuffle_of(epoch)[offset : offset + self.batch_size]
        missing = self.batch_size - len(index)
        return torch.cat([index, self.shuffle_of(epoch + 1)[:missing]]) if missing else index

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

    def keep(self, rows: list[int]) -> None:
        """Continue with these members alone."""
        self.orders = [self.orders[row] for row in rows]

    def batch(self, step: int) -> Batch:
        """The batch that follows `step` updates."""
        index = shard(torch.stack([order.batch(step) for order in self.orders])).to(self.device)
        if not self.augment:
            return Batch(index, None)
        return Batch(index, shard(torch.stack([draw_crop(order, step) for order in self.orders])).to(self.device))


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
