"""scikit-learn's digits: 1,797 scans of 8×8 pixels with values 0 to 16, part of the package."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from bnexp.data.images import Images, Source
from bnexp.runs.config import DatasetConfig
from bnexp.runs.seeds import generator

TEST_IMAGES = 360


def load(config: DatasetConfig) -> Source:
    """Read 1,437 training and 360 test images of a fixed shuffle: the file is sorted by writer."""
    table = torch.from_numpy(np.loadtxt(digits_file(), dtype=np.uint8, delimiter=","))
    table = table[torch.randperm(len(table), generator=generator(0, "digits"))]
    images = Images(table[:, :64].reshape(-1, 1, 8, 8), table[:, 64].long())
    return Source(images[TEST_IMAGES:], images[:TEST_IMAGES], tuple("0123456789"), peak=16)


def digits_file() -> Path:
    """The table behind scikit-learn's `load_digits`: a row of 64 pixels and the label for each scan.

    Importing scikit-learn would take 1.3 s, a third of a short run.
    """
    package = find_spec("sklearn")
    return Path(str(package and package.origin)).parent / "datasets" / "data" / "digits.csv.gz"


def problem(config: DatasetConfig) -> str | None:
    """None: the file is part of a package that bnexp needs."""
    return None


def location(config: DatasetConfig) -> str:
    """Where the data set is, for a table."""
    return "part of scikit-learn"
