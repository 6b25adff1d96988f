"""scikit-learn's digits: 1,797 scans of 8×8 pixels with values 0 to 16, part of the package."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from bnexp.config import DatasetConfig
from bnexp.datasets.images import Images, Source
from bnexp.seeds import generator

TEST = 360


def load(config: DatasetConfig) -> Source:
    """1,437 training and 360 test images of a fixed shuffle (the file is sorted by writer)."""
    table = torch.from_numpy(np.loadtxt(digits_file(), dtype=np.uint8, delimiter=","))
    everything = Images(table[:, :64].reshape(-1, 1, 8, 8), table[:, 64].long())
    order = torch.randperm(len(everything), generator=generator(0, "digits"))
    return Source(everything[order[TEST:]], everything[order[:TEST]], tuple("0123456789"), peak=16)


def digits_file() -> Path:
    """The table behind scikit-learn's `load_digits`, a row of 64 pixels and the label for each: to import scikit-learn
    takes 1.3 s, a third of a short run.
    """
    package = find_spec("sklearn")
    return Path(str(package and package.origin)).parent / "datasets" / "data" / "digits.csv.gz"


def problem(config: DatasetConfig) -> str | None:
    return None


def location(config: DatasetConfig) -> str:
    return "part of scikit-learn"
