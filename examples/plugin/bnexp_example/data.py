"""A data set in a NumPy archive: train_images and test_images, uint8 (N, H, W) or (N, H, W, C), and their labels."""

from pathlib import Path

import numpy as np
import torch

from bnexp.plugin import ConfigError, DatasetConfig, Images, Source


def load(config: DatasetConfig) -> Source:
    """Read the archive `dataset.path`. Raises ConfigError where it isn't one, or lacks an array."""
    if reason := problem(config):
        raise ConfigError(f"dataset.path={config.path} cannot be used: {reason}")
    try:
        with np.load(str(config.path), allow_pickle=False) as archive:
            train, test = (images_of(archive, part) for part in ("train", "test"))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"dataset.path={config.path} cannot be read: {error}") from error
    return Source(train, test, tuple(map(str, range(1 + int(train.labels.max())))))


def images_of(archive: np.lib.npyio.NpzFile, part: str) -> Images:
    """Return the images of a part of the archive."""
    pixels = torch.from_numpy(archive[f"{part}_images"])
    pixels = pixels[:, None] if pixels.dim() == 3 else pixels.permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.from_numpy(archive[f"{part}_labels"]).long())


def problem(config: DatasetConfig) -> str | None:
    """Return why the data set can't be used, or None."""
    if config.path is None:
        return "it names no archive: dataset.path=FILE.npz"
    return None if Path(config.path).is_file() else "there is no such file"


def location(config: DatasetConfig) -> str:
    """Return where the data set is."""
    return str(config.path)
