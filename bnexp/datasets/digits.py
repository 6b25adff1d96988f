"""scikit-learn's digits: 1,797 scans of 8×8 pixels with values 0 to 16, part of the package."""

import torch
from sklearn.datasets import load_digits

from bnexp.config import DatasetConfig
from bnexp.datasets.images import Images, Source
from bnexp.seeds import generator

TEST = 360


def load(config: DatasetConfig) -> Source:
    """1,437 training and 360 test images of a fixed shuffle (the file is sorted by writer)."""
    digits = load_digits()
    pixels = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
    everything = Images(pixels, torch.from_numpy(digits.target).long())
    order = torch.randperm(len(everything), generator=generator(0, "digits"))
    classes = tuple(str(name) for name in digits.target_names)
    return Source(everything[order[TEST:]], everything[order[:TEST]], classes, peak=16)


def problem(config: DatasetConfig) -> str | None:
    return None


def location(config: DatasetConfig) -> str:
    return "part of scikit-learn"
