"""scikit-learn's digits: 1,797 images of 8×8 pixels with values 0 to 16, which are installed with it."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from bnexp.data.images import Images, Source
from bnexp.runs.config import DatasetConfig
from bnexp.runs.seeds import generator

TEST_IMAGES = 360


def load(config: DatasetConfig) -> Source:
    """Read the images and shuffle them, always in the same way, since the file is sorted by writer.

    The first 360 are the test images, the other 1,437 the training images.
    """
    table = torch.from_numpy(np.loadtxt(digits_file(), dtype=np.uint8, delimiter=","))
    table = table[torch.randperm(len(table), generator=generator(0, "digits"))]
    images = Images(table[:, :64].reshape(-1, 1, 8, 8), table[:, 64].long())
    return Source(images[TEST_IMAGES:], images[:TEST_IMAGES], tuple("0123456789"), peak=16)


def digits_file() -> Path:
    """Return the path of the table that `load_digits` reads: each row has the 64 pixels and the label of an image.

    scikit-learn is not imported: that would take 1.3 s, a third of a short run.
    """
    package = find_spec("sklearn")
    return Path(str(package and package.origin)).parent / "datasets" / "data" / "digits.csv.gz"


def problem(config: DatasetConfig) -> str | None:
    """Return None: the file is part of a package that bnexp requires."""
    return None


def location(config: DatasetConfig) -> str:
    """Return where the data set is, as a text to show to the user."""
    return "part of scikit-learn"
