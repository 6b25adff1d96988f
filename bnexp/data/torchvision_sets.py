"""MNIST, Fashion-MNIST and CIFAR-10, downloaded by torchvision into its own folders.

The files are checked before each use, also MNIST's, which torchvision itself checks only as archives.
"""

import shutil
import socket
from dataclasses import dataclass, replace
from http.client import HTTPException
from math import prod
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file

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
IMAGES = {"train": 60_000, "t10k": 10_000}  # number in the IDX files whose names begin with the key


@dataclass(frozen=True)
class TorchvisionSet:
    """The loader of a data set of torchvision.

    factory: torchvision's class. folder: the folder of the files, under `dataset.root`. files: name → published MD5, or
    None if none is published.
    """

    name: str
    factory: Any  # a class of torchvision.datasets
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
        """Return what is wrong with a file's content, or None. Raises OSError if it can't be read."""
        return f"its MD5 is not the published {md5}" if md5 and file_digest(path, "md5") != md5 else None

    def load(self, config: DatasetConfig) -> Source:
        """Read the data set, after downloading it if a file is missing. Raises ConfigError if it can't be used."""
        self.fetch(config)
        if problem := self.problem(config):
            raise ConfigError(f"dataset={self.name}: {problem}; it is not used, delete it to fetch it anew")
        return self.read(config)

    def read(self, config: DatasetConfig) -> Source:
        """Read the files, which have been checked."""
        sets = [self.factory(config.root, train=train) for train in (True, False)]
        train, test = (Images(torch.as_tensor(s.data).permute(0, 3, 1, 2), torch.as_tensor(s.targets)) for s in sets)
        return Source(train, test, tuple(sets[0].classes))

    def fetch(self, config: DatasetConfig) -> None:
        """Download the data set if a file is missing; if another process is downloading it, wait for that.

        Raises ConfigError that says what can be done by hand. Folders that were created and stayed empty are removed.
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

        Files go to a temporary folder first, so that an interrupted download leaves no incomplete files. Raises
        RuntimeError that says what went wrong at each mirror.
        """
        part = Path(config.root).absolute() / f".{self.name}.part"  # absolute: torchvision would expand ~
        temporary, problems = replace(config, root=str(part)), list[str]()
        try:
            for factory in one_per_mirror(self.factory):
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


class IdxSet(TorchvisionSet):
    """The loader of a data set in four IDX files with MNIST's names. It checks their headers, sizes and labels, too."""

    def file_problem(self, path: Path, md5: str | None) -> str | None:
        """Return what is wrong with a file's content, or None. Raises OSError if it can't be read."""
        header, content = idx_header(path.name), path.read_bytes()
        if content[: len(header)] != header or len(content) != len(header) + prod(idx_shape(path.name)):
            return "its header or size is not that of the published file"
        if "labels" in path.name and max(content[len(header) :]) > 9:
            return "it holds labels above 9"
        return super().file_problem(path, md5)

    def read(self, config: DatasetConfig) -> Source:
        """Read the checked files. torchvision's class would prefer processed/training.pt, which old versions wrote."""

        def part(name: str) -> Images:
            start = str(self.folder_of(config) / name)
            pixels = read_image_file(f"{start}-images-idx3-ubyte").unsqueeze(1)
            return Images(pixels, read_label_file(f"{start}-labels-idx1-ubyte"))

        return Source(part("train"), part("t10k"), tuple(self.factory.classes))


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


def one_per_mirror(factory: Any) -> list[Any]:
    """Return a class for each mirror of a class of torchvision, or the class itself if it has no mirrors.

    torchvision tries no other mirror after one that stops in the middle of a file.
    """
    mirrors = getattr(factory, "mirrors", None)
    return [type(factory.__name__, (factory,), {"mirrors": [mirror]}) for mirror in mirrors] if mirrors else [factory]


CIFAR10_FILES: dict[str, str | None] = dict(datasets.CIFAR10.train_list + datasets.CIFAR10.test_list)
CIFAR10_FILES[datasets.CIFAR10.meta["filename"]] = datasets.CIFAR10.meta["md5"]

MNIST = IdxSet("mnist", datasets.MNIST, "MNIST/raw", dict(MNIST_MD5))
FASHION_MNIST = IdxSet("fashion_mnist", datasets.FashionMNIST, "FashionMNIST/raw", dict.fromkeys(MNIST_MD5))
CIFAR10 = TorchvisionSet("cifar10", datasets.CIFAR10, datasets.CIFAR10.base_folder, CIFAR10_FILES)
