"""Data sets as uint8 tensors in memory, scaled when they are used; every data set, by name."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor

from bnexp.config import ConfigError, DatasetConfig, require_choice
from bnexp.console import command, complain, count, printable, show_table
from bnexp.datasets.conditions import CONDITIONS, in_every_style
from bnexp.datasets.images import Contents, Images, Source
from bnexp.seeds import generator

MOST_CLASSES = 100  # that are shown on the screen


class Loader(Protocol):
    """What a module or object of bnexp/datasets/ offers."""

    @property
    def load(self) -> Callable[[DatasetConfig], Source]: ...  # raises ConfigError
    @property
    def problem(self) -> Callable[[DatasetConfig], str | None]: ...  # why it can't be used, or None
    @property
    def location(self) -> Callable[[DatasetConfig], str]: ...


# Name → module and, where one module holds several, the object in it: imported when it is asked for, since
# torchvision takes seconds.
DATASETS = {
    "digits": ("digits", None),
    "mnist": ("torchvision_sets", "MNIST"),
    "fashion_mnist": ("torchvision_sets", "FASHION_MNIST"),
    "cifar10": ("torchvision_sets", "CIFAR10"),
    "image_folder": ("image_folder", None),
}


def find_loader(name: str) -> Loader:
    """Raises ConfigError on an unknown name."""
    require_choice("dataset", name, DATASETS)
    module_name, attribute = DATASETS[name]
    module = import_module(f"bnexp.datasets.{module_name}")
    loader: Loader = getattr(module, attribute) if attribute else cast(Loader, module)
    return loader


@dataclass(frozen=True)
class Data:
    """A data set, split. An image x (C, H, W) enters a network as scale · x + shift, both (C, 1, 1), or (C, H, W)
    where pixels lie channels_last: a channel's number is then a stripe, which vectorizes badly.
    """

    train: Images
    validation: Images
    test: Images
    classes: int
    scale: Tensor
    shift: Tensor
    checksum: str  # SHA-256 of all pixels and labels, in the order of the splits
    contents: Contents | None = None  # of an image folder

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width

    def scaled(self, pixels: Tensor) -> Tensor:
        x = pixels.to(torch.float32, copy=True)  # in place from here: fresh memory costs ten times the arithmetic
        return x.mul_(self.scale).add_(self.shift)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> "Data":
        def moved(images: Images) -> Images:
            pixels = images.pixels.contiguous(memory_format=memory_format)
            condition = None if images.condition is None else images.condition.to(device)
            return Images(pixels.to(device), images.labels.to(device), condition)

        def laid_out(number: Tensor) -> Tensor:
            if memory_format == torch.channels_last:
                number = number.expand(1, *self.shape).contiguous(memory_format=memory_format)[0]
            return number.to(device)

        return replace(
            self,
            train=moved(self.train),
            validation=moved(self.validation),
            test=moved(self.test),
            scale=laid_out(self.scale),
            shift=laid_out(self.shift),
        )


_loaded: dict[str, Data] = {}


def load_data(config: DatasetConfig, recorded_in: Path | None = None) -> Data:
    """The data set of a configuration, read once a process. Raises ConfigError where it can't be used. One that a run's
    directory has recorded (`recorded_in`) is not fetched: where it isn't found, it may have been moved.
    """
    loader = find_loader(config.name)
    key = json.dumps(asdict(config))
    if key not in _loaded:
        problem = loader.problem(config) if recorded_in else None
        if recorded_in and problem:
            moved = "dataset.path=FOLDER" if config.path else "dataset.root=FOLDER"
            moves = f"where it is elsewhere: {command('resume', recorded_in, moved)}"
            raise ConfigError(f"{recorded_in}: dataset={config.name}: {problem}; {moves}")
        _loaded.clear()  # a sweep over data sets needs one at a time
        _loaded[key] = split(loader.load(config), config)
    return _loaded[key]


def split(source: Source, config: DatasetConfig) -> Data:
    """Hold out `validation` training images: the first ones, as the published experiments do; of an image folder,
    which is sorted by class, of each class its share.
    """
    source = of_classes(source, config.classes) if config.classes else source
    source = binarized(source) if config.binarize else source
    everything = source.train
    if config.name == "image_folder":
        everything = everything[stratified_order(everything.labels)]
    if config.validation >= len(everything):
        raise ConfigError(
            f"dataset.validation={config.validation} is not allowed: fewer than the {len(everything)} training images"
        )
    if config.augment == "flip_crop" and everything.pixels.shape[1] != 3:
        raise ConfigError("dataset.augment=flip_crop is not allowed: it is meant for colour images")
    validation, train = everything[: config.validation], everything[config.validation :]
    if config.limit is not None:
        train = train[: config.limit]
    contents = contents_of(source, train, validation, config)
    splits = styled([train, validation, source.test], source.peak, config.conditions)
    scale, shift = scaling(splits[0].pixels, source.peak, config.standardize)
    train, validation, test = splits
    return Data(train, validation, test, len(source.classes), scale, shift, checksum(splits), contents)


def stratified_order(labels: Tensor) -> Tensor:
    """A fixed order of images, int64 (N,), of which every first part has the classes in about the proportions of all:
    each class is shuffled, and its i-th of n goes where i + 1/2 of n are.
    """
    place, random = torch.empty(len(labels), dtype=torch.float64), generator(0, "image_folder")
    for label in range(int(labels.max()) + 1):
        rows = torch.nonzero(labels == label).flatten()
        shuffled = rows[torch.randperm(len(rows), generator=random)]
        place[shuffled] = (torch.arange(len(rows), dtype=torch.float64) + 0.5) / len(rows)
    by_class = torch.argsort(labels, stable=True)
    return by_class[torch.argsort(place[by_class], stable=True)]


def contents_of(source: Source, train: Images, validation: Images, config: DatasetConfig) -> Contents | None:
    """What an image folder was read as; None for another data set. Raises ConfigError for a class that has no image
    left to train on.
    """
    if source.left_out is None:
        return None
    parts = {"train": train, "validation": validation, "test": source.test}
    counts = {name: torch.bincount(part.labels, minlength=len(source.classes)) for name, part in parts.items()}
    classes = {name: {part: int(counts[part][number]) for part in parts} for number, name in enumerate(source.classes)}
    for name, images in classes.items():
        if not images["train"]:
            limit = f" and dataset.limit={config.limit}" if config.limit is not None else ""
            raise ConfigError(
                f"dataset.path={config.path}: no image of class {printable(name)} is left to train on with "
                f"dataset.validation={config.validation}{limit}: {count(images['validation'], 'image')} of it held out"
            )
    return Contents(str(config.path), classes, source.left_out, source.notice)


def show_contents(contents: Contents) -> None:
    """Print what an image folder was read as: a row a class, as far as a person would read them, and a reason."""
    parts = ("train", "validation", "test")
    rows = [[name, *(f"{images[part]:,}" for part in parts)] for name, images in contents.classes.items()]
    if len(rows) > MOST_CLASSES:
        rows[MOST_CLASSES:] = [[f"… {len(rows) - MOST_CLASSES:,} more, all of them in run.json", "", "", ""]]
    totals = (sum(images[part] for images in contents.classes.values()) for part in parts)
    rows.append([f"all {len(contents.classes):,} classes", *(f"{total:,}" for total in totals)])
    for reason, found in contents.left_out.items():
        if found["train"] or found["test"]:
            rows.append([f"left out: {reason}", f"{found['train']:,}", "", f"{found['test']:,}"])
    beside = sum(sum(found.values()) - found["train"] - found["test"] for found in contents.left_out.values())
    if beside:
        rows.append([f"left out: {count(beside, 'file')} beside train/ and test/", "", "", ""])
    show_table(f"images of {contents.path}", ["class", *parts], rows)
    if contents.notice:
        complain(contents.notice)


def styled(splits: list[Images], peak: int, conditions: list[str]) -> list[Images]:
    """Every image in each style. Raises ConfigError where the styles and the images don't fit one another."""
    for name in conditions:
        require_choice("dataset.conditions", name, CONDITIONS)
    height, width = splits[0].pixels.shape[2:]
    if "rotated90" in conditions and height != width:
        raise ConfigError(f"dataset.conditions=rotated90 is not allowed: images of {height}×{width} are not square")
    return [in_every_style(images, conditions, peak) for images in splits] if conditions else splits


def of_classes(source: Source, chosen: list[int]) -> Source:
    """The images of these classes alone, numbered in the order given."""
    count = len(source.classes)
    if not all(0 <= number < count for number in chosen):
        raise ConfigError(f"dataset.classes={chosen} is not allowed: the classes are 0 to {count - 1}")

    def picked(images: Images) -> Images:
        place = torch.full((count,), -1).scatter(0, torch.tensor(chosen), torch.arange(len(chosen)))
        labels = place[images.labels]
        return Images(images.pixels[labels >= 0], labels[labels >= 0])

    names = tuple(source.classes[number] for number in chosen)
    return replace(source, train=picked(source.train), test=picked(source.test), classes=names)


def binarized(source: Source) -> Source:
    """Every pixel 0 or the peak, whichever is nearer: the binary images of Ioffe & Szegedy 2015, §4.1."""

    def nearer(images: Images) -> Images:
        return Images((images.pixels > source.peak // 2).to(torch.uint8) * source.peak, images.labels)

    return replace(source, train=nearer(source.train), test=nearer(source.test))


def scaling(pixels: Tensor, peak: int, standardize: bool) -> tuple[Tensor, Tensor]:
    """Scale and shift, (C, 1, 1): to [0, 1], or to mean 0 and standard deviation 1 a channel of the training set."""
    channels = pixels.shape[1]
    if not standardize:
        return torch.full((channels, 1, 1), 1 / peak), torch.zeros(channels, 1, 1)
    counts = torch.stack([torch.bincount(pixels[:, c].flatten(), minlength=256) for c in range(channels)]).double()
    values = torch.arange(256.0, dtype=torch.float64)
    mean = (counts * values).sum(1) / counts.sum(1)
    deviation = ((counts * (values - mean[:, None]).square()).sum(1) / counts.sum(1)).sqrt().clamp_min(1e-6)
    return (1 / deviation).float().view(-1, 1, 1), (-mean / deviation).float().view(-1, 1, 1)


def checksum(splits: list[Images]) -> str:
    digest = hashlib.sha256()
    for images in splits:
        for tensor in (images.pixels, images.labels):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
