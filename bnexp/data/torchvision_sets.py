"""MNIST, Fashion-MNIST and CIFAR-10, downloaded by torchvision into its own folders.

The files are checked before each use, also MNIST's, which torchvision itself checks only as archives. Only a download
imports torchvision, which takes as long as importing torch.
"""

import pickle
import shutil
import socket
from dataclasses import dataclass, replace
from http.client import HTTPException
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bnexp.data.images import Images, Source
from bnexp.runs.config import ConfigError, DatasetConfig
from bnexp.runs.lock import remove_empty, turn
from bnexp.runs.tensors import file_digest

PATIENCE = 30  # seconds without an answer from a mirror

# The published MD5 of MNIST's uncompressed files. For Fashion-MNIST only those of the archives are published, so
# there the header, the size and the labels' range are checked.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
IMAGES = {"train": 60_000, "t10k": 10_000}  # number in the IDX files whose names begin with the key


@dataclass(frozen=True)
class TorchvisionSet:
    """The loader of a data set of torchvision.

    factory: the name of torchvision's class. folder: the folder of the files, under `dataset.root`. files: name →
    published MD5, or None if none is published.
    """

    name: str
    factory: str
    folder: str
    files: dict[str, str | None]

    def folder_of(self, config: DatasetConfig) -> Path:
        """Return the folder that holds the files."""
        return Path(config.root) / self.folder

    def location(self, config: DatasetConfig) -> str:
        """Return where the data set is, as a text to show to the user."""
        return str(self.folder_of(config))

    def missing(self, config: DatasetConfig) -> Path | None:
        """Return the path of the first file that is missing, or None."""
        paths = (self.folder_of(config) / name for name in self.files)
        return next((path for path in paths if not path.is_file()), None)

    def problem(self, config: DatasetConfig) -> str | None:
        """Return why the data set can't be used as it is, or None: a file is missing, unreadable or damaged."""
        if missing := self.missing(config):
            return f"{missing} is missing"
        for name, md5 in self.files.items():
            path = self.folder_of(config) / name
            try:
                problem = self.file_problem(path, md5)
            except OSError as error:
                return f"{path} cannot be read: {error.strerror}"
            if problem:
                return f"{path} is damaged: {problem}"
        return None

    def file_problem(self, path: Path, md5: str | None) -> str | None:
        """Return what is wrong with a file's content, or None. Raises OSError if it can't be read.

        md5: the published one; without one, nothing is checked.
        """
        return f"its MD5 is not the published {md5}" if md5 and file_digest(path, "md5") != md5 else None

    def load(self, config: DatasetConfig) -> Source:
        """Read the data set, after downloading it if a file is missing. Raises ConfigError if it can't be used."""
        self.fetch(config)
        if problem := self.problem(config):
            raise ConfigError(f"dataset={self.name}: {problem}; it is not used, delete it to fetch it anew")
        return self.read(config)

    def read(self, config: DatasetConfig) -> Source:
        """Read the files, which have been checked. A subclass implements it."""
        raise NotImplementedError

    def fetch(self, config: DatasetConfig) -> None:
        """Download the data set if a file is missing; if another process is downloading it, wait for that.

        If that fails, raises ConfigError that says what can be done by hand. Folders that were created and stayed empty
        are removed.
        """
        missing, root = self.missing(config), Path(config.root)
        if missing is None:
            return
        new_folders = [folder for folder in (root, *root.parents) if not folder.exists()]
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(PATIENCE)
        try:
            with turn(root / f".{self.name}.lock"):
                if self.missing(config):
                    self.download(config)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"dataset={self.name}: {missing} is missing and could not be downloaded ({error}); place the files "
                f"{', '.join(self.files)} in {missing.parent} by hand, name another folder with dataset.root=…, "
                "or use dataset=digits, which needs no download"
            ) from error
        finally:
            socket.setdefaulttimeout(timeout)
            remove_empty(new_folders)

    def download(self, config: DatasetConfig) -> None:
        """Download from the first mirror that has all files, whole.

        Files go to a temporary folder first, so that an interrupted download leaves no incomplete files in the data
        set's. Raises RuntimeError, with what went wrong at each mirror, if there is none, and OSError if the files
        can't be moved.
        """
        part = Path(config.root).absolute() / f".{self.name}.part"  # absolute: torchvision would expand ~
        temporary, problems = replace(config, root=str(part)), list[str]()
        try:
            for factory in one_per_mirror(torchvision_class(self.factory)):
                shutil.rmtree(part, ignore_errors=True)
                problem = self.try_download(factory, temporary)
                if problem is None:
                    self.folder_of(config).mkdir(parents=True, exist_ok=True)
                    for name in self.files:
                        (self.folder_of(temporary) / name).replace(self.folder_of(config) / name)
                    return
                problems.append(problem)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        raise RuntimeError("; ".join(problems))

    def try_download(self, factory: Any, config: DatasetConfig) -> str | None:
        """Download with a class of torchvision. Return what went wrong, or None."""
        try:
            factory(config.root, download=True)
            return self.problem(config)
        except (OSError, RuntimeError, HTTPException) as error:
            return " ".join(str(error).split()) or type(error).__name__


@dataclass(frozen=True)
class IdxSet(TorchvisionSet):
    """The loader of a data set in four IDX files with MNIST's names. It checks their headers, sizes and labels, too."""

    classes: tuple[str, ...]

    def file_problem(self, path: Path, md5: str | None) -> str | None:
        """Return what is wrong with a file's content, or None. Raises OSError if it can't be read.

        md5: the published one; without one, only the header, the size and the labels are checked.
        """
        header = idx_header(path.name)
        with path.open("rb") as file:
            same = file.read(len(header)) == header and path.stat().st_size == len(header) + prod(idx_shape(path.name))
        if not same:
            return "its header or size is not that of the published file"
        if "labels" in path.name and idx_array(path).max() > 9:
            return "it holds labels above 9"
        return super().file_problem(path, md5)

    def read(self, config: DatasetConfig) -> Source:
        """Read the checked files."""

        def part(name: str) -> Images:
            start = str(self.folder_of(config) / name)
            images, labels = (idx_array(Path(f"{start}-{kind}-ubyte")) for kind in ("images-idx3", "labels-idx1"))
            return Images(images.unsqueeze(1), labels.long())

        return Source(part("train"), part("t10k"), self.classes)


@dataclass(frozen=True)
class Cifar10(TorchvisionSet):
    """The loader of CIFAR-10, whose files are pickles: they are read only where they are the published ones."""

    def read(self, config: DatasetConfig) -> Source:
        """Read the checked files."""
        contents = {
            name: pickle.loads((self.folder_of(config) / name).read_bytes(), encoding="latin1") for name in self.files
        }
        meta, test = contents.pop("batches.meta"), contents.pop("test_batch")

        def images(parts: list[dict[str, Any]]) -> Images:
            pixels = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
            return Images(torch.from_numpy(pixels), torch.tensor([label for part in parts for label in part["labels"]]))

        return Source(images(list(contents.values())), images([test]), tuple(meta["label_names"]))


def idx_shape(name: str) -> tuple[int, ...]:
    """Return the shape of the array in the IDX file with this name."""
    count = IMAGES[name.partition("-")[0]]
    return (count, 28, 28) if "images" in name else (count,)


def idx_header(name: str) -> bytes:
    """Return the header of the IDX file with this name: magic number and shape, as big-endian 32-bit integers.

    The magic number is 0x0800 (unsigned bytes) plus the number of dimensions.
    """
    shape = idx_shape(name)
    return b"".join(number.to_bytes(4, "big") for number in (0x0800 + len(shape), *shape))


def idx_array(path: Path) -> Tensor:
    """Return the content of an IDX file whose size is right, uint8, in the shape that its name says."""
    content = np.fromfile(path, np.uint8, offset=len(idx_header(path.name)))
    return torch.from_numpy(content).view(idx_shape(path.name))


def torchvision_class(name: str) -> Any:
    """Return a class of torchvision's data sets by its name."""
    from torchvision import datasets  # noqa: PLC0415 - takes as long as importing torch

    return getattr(datasets, name)


def one_per_mirror(factory: Any) -> list[Any]:
    """Return a subclass for each mirror of a class of torchvision, or a list of the class itself if it has no mirrors.

    torchvision tries no other mirror after one that stops in the middle of a file.
    """
    mirrors = getattr(factory, "mirrors", None)
    return [type(factory.__name__, (factory,), {"mirrors": [mirror]}) for mirror in mirrors] if mirrors else [factory]


MNIST = IdxSet(
    "mnist", "MNIST", "MNIST/raw", dict(MNIST_MD5), tuple(f"{n} - {digit}" for n, digit in enumerate(DIGITS))
)
FASHION_MNIST = IdxSet("fashion_mnist", "FashionMNIST", "FashionMNIST/raw", dict.fromkeys(MNIST_MD5), CLOTHES)
CIFAR10 = Cifar10("cifar10", "CIFAR10", "cifar-10-batches-py", dict(CIFAR10_MD5))
