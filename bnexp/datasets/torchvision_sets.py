"""MNIST, Fashion-MNIST and CIFAR-10 through torchvision: its layout, its download, its checksums; and a check of the
files themselves before they are used, which torchvision leaves out for MNIST.
"""

import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from http.client import HTTPException
from math import prod
from pathlib import Path
from typing import Any

import torch
from torchvision import datasets
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import check_integrity

from bnexp.config import ConfigError, DatasetConfig
from bnexp.datasets.images import Images, Source
from bnexp.lock import turn
from bnexp.storage import file_digest

PATIENCE = 30  # seconds without an answer from a mirror

# The published MD5 of MNIST's uncompressed files. For Fashion-MNIST only those of the archives are published, so
# there the header, the size and the labels' range are checked.
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


IMAGES = {"train": 60_000, "t10k": 10_000}  # in a file of this part


def idx_sizes(name: str) -> tuple[int, ...]:
    """Of one of the four IDX files."""
    count = IMAGES[name.partition("-")[0]]
    return (count, 28, 28) if "images" in name else (count,)


def idx_header(name: str) -> bytes:
    """Magic number and sizes (LeCun's format: big-endian, 08 = unsigned byte, then how many sizes there are)."""
    numbers = (0x0800 + len(idx_sizes(name)), *idx_sizes(name))
    return b"".join(number.to_bytes(4, "big") for number in numbers)


def idx_problem(path: Path, md5: str | None) -> str | None:
    """What is wrong with an IDX file, or None."""
    header = idx_header(path.name)
    data = path.read_bytes()
    if data[: len(header)] != header or len(data) != len(header) + prod(idx_sizes(path.name)):
        return f"{path} is damaged: its header or size is not that of the published file"
    if "labels" in path.name and max(data[len(header) :]) > 9:
        return f"{path} is damaged: it holds labels above 9"
    if md5 is not None and file_digest(path, "md5") != md5:
        return f"{path} is damaged: its MD5 is not the published {md5}"
    return None


def one_by_mirror(factory: Any) -> list[Any]:
    """torchvision's class once for each of its mirrors: it gives up where one stops in the middle of an answer."""
    mirrors = getattr(factory, "mirrors", None)
    return [type(factory.__name__, (factory,), {"mirrors": [mirror]}) for mirror in mirrors] if mirrors else [factory]


@dataclass(frozen=True)
class TorchvisionSet:
    name: str
    factory: Any  # one of torchvision.datasets
    folder: str  # under dataset.root
    files: dict[str, str | None]  # name → MD5
    read: Callable[["TorchvisionSet", DatasetConfig], Source]

    def folder_of(self, config: DatasetConfig) -> Path:
        return Path(config.root) / self.folder

    def location(self, config: DatasetConfig) -> str:
        return str(self.folder_of(config))

    def missing(self, config: DatasetConfig) -> Path | None:
        """The first file that isn't there."""
        paths = (self.folder_of(config) / name for name in self.files)
        return next((path for path in paths if not path.is_file()), None)

    def problem(self, config: DatasetConfig) -> str | None:
        """What keeps the data set from being used, or None: a file that is missing, unreadable or damaged."""
        missing = self.missing(config)
        if missing is not None:
            return f"{missing} is missing"
        for name, md5 in self.files.items():
            path = self.folder_of(config) / name
            try:
                found = self.file_problem(path, md5)
            except OSError as error:
                found = f"{path} cannot be read: {error.strerror}"
            if found:
                return found
        return None

    def file_problem(self, path: Path, md5: str | None) -> str | None:
        if path.name.endswith("-ubyte"):
            return idx_problem(path, md5)
        if not check_integrity(str(path), md5):
            return f"{path} is damaged: its MD5 is not the published {md5}"
        return None

    def fetch(self, config: DatasetConfig) -> None:
        """Download what is missing, once: whoever comes meanwhile waits. Raises ConfigError with what to do by hand."""
        missing, root = self.missing(config), Path(config.root)
        if missing is None:
            return
        made = [folder for folder in (root, *root.parents) if not folder.exists()]
        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(PATIENCE)
        try:
            with turn(root / f".{self.name}.lock"):
                if self.missing(config) is not None:
                    self.download(config)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"dataset={self.name}: {missing} is missing and could not be downloaded ({error}); place the files "
                f"{', '.join(self.files)} in {missing.parent} by hand, name another folder with dataset.root=…, "
                "or use dataset=digits, which needs no download"
            ) from error
        finally:
            socket.setdefaulttimeout(patience)
            with suppress(OSError):  # leave no empty folder behind
                for folder in made:
                    folder.rmdir()

    def download(self, config: DatasetConfig) -> None:
        """From the first mirror that has it whole, into a folder beside: a download that is cut off doesn't count.
        Raises RuntimeError with what went wrong at each.
        """
        part = Path(config.root).absolute() / f".{self.name}.part"  # absolute: torchvision would expand ~
        beside, answers = replace(config, root=str(part)), list[str]()
        try:
            for factory in one_by_mirror(self.factory):
                shutil.rmtree(beside.root, ignore_errors=True)
                try:
                    factory(beside.root, download=True)
                    found = self.problem(beside)
                except (OSError, RuntimeError, HTTPException) as error:
                    found = " ".join(str(error).split()) or type(error).__name__
                if found is None:
                    self.folder_of(config).mkdir(parents=True, exist_ok=True)
                    for name in self.files:
                        (self.folder_of(beside) / name).replace(self.folder_of(config) / name)
                    return
                answers.append(found)
        finally:
            shutil.rmtree(beside.root, ignore_errors=True)
        raise RuntimeError("; ".join(answers))

    def load(self, config: DatasetConfig) -> Source:
        self.fetch(config)
        found = self.problem(config)
        if found is not None:
            raise ConfigError(f"dataset={self.name}: {found}; it is not used, delete it to fetch it anew")
        return self.read(self, config)


def read_idx(these: TorchvisionSet, config: DatasetConfig) -> Source:
    """The files that were checked: torchvision's class would prefer processed/training.pt, which old versions wrote."""
    folder = these.folder_of(config)

    def part(name: str) -> Images:
        pixels = read_image_file(str(folder / f"{name}-images-idx3-ubyte")).unsqueeze(1)
        return Images(pixels, read_label_file(str(folder / f"{name}-labels-idx1-ubyte")))

    return Source(part("train"), part("t10k"), tuple(these.factory.classes))


def read_cifar10(these: TorchvisionSet, config: DatasetConfig) -> Source:
    def part(train: bool) -> Images:
        found = these.factory(config.root, train=train)
        return Images(torch.as_tensor(found.data).permute(0, 3, 1, 2), torch.as_tensor(found.targets))

    classes = these.factory(config.root, train=False).classes
    return Source(part(True), part(False), tuple(classes))


CIFAR10_FILES: dict[str, str | None] = dict(datasets.CIFAR10.train_list + datasets.CIFAR10.test_list)
CIFAR10_FILES[datasets.CIFAR10.meta["filename"]] = datasets.CIFAR10.meta["md5"]

MNIST = TorchvisionSet("mnist", datasets.MNIST, "MNIST/raw", dict(MNIST_MD5), read_idx)
FASHION_MNIST = TorchvisionSet(
    "fashion_mnist", datasets.FashionMNIST, "FashionMNIST/raw", dict.fromkeys(MNIST_MD5, None), read_idx
)
CIFAR10 = TorchvisionSet("cifar10", datasets.CIFAR10, datasets.CIFAR10.base_folder, CIFAR10_FILES, read_cifar10)
