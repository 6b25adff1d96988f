"""All data sets, by name, and their loading: as uint8 tensors in memory, which are scaled when they are used."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Protocol

import torch
from torch import Tensor

from bnexp.data.conditions import CONDITIONS, in_conditions
from bnexp.data.images import Contents, Images, Source
from bnexp.runs.config import ConfigError, DatasetConfig, require, require_choice
from bnexp.runs.console import command, count, print_error, printable, show_table
from bnexp.runs.plugins import find_entry
from bnexp.runs.seeds import generator

SPLITS = ("train", "validation", "test")
CLASSES_SHOWN = 100  # number of classes in the table of a folder of images


class Loader(Protocol):
    """The interface of a data set's loader, which is a module or an object in bnexp/data/."""

    def load(self, config: DatasetConfig) -> Source:
        """Read the data set, and download it if it is missing and can be. Raises ConfigError if it can't be used."""

    def problem(self, config: DatasetConfig) -> str | None:
        """Return why the data set can't be used without downloading anything, or None."""

    def location(self, config: DatasetConfig) -> str:
        """Return where the data set is, as a text to show to the user."""


# Name → loader: a module or an object in it. It is imported when needed, since importing torchvision takes seconds.
DATASETS = {
    "digits": "bnexp.data.digits",
    "mnist": "bnexp.data.torchvision_sets:MNIST",
    "fashion_mnist": "bnexp.data.torchvision_sets:FASHION_MNIST",
    "cifar10": "bnexp.data.torchvision_sets:CIFAR10",
    "image_folder": "bnexp.data.image_folder",
}


def find_loader(name: str) -> Loader:
    """Import and return the loader of a data set. Raises ConfigError for an unknown name."""
    entry = find_entry("dataset", name, DATASETS)
    loader: Loader = resolve_name(entry) if isinstance(entry, str) else entry
    return loader


@dataclass(frozen=True)
class Data:
    """A data set with its three splits. The input of a network is scale · pixels + shift.

    classes: their number. scale, shift: (C, 1, 1), or (C, H, W) for pixels in channels_last, where broadcasting one
    number per channel would be slow. checksum: SHA-256 of the pixels and labels of all splits. contents: a summary of a
    folder of images; None for other data sets.
    """

    train: Images
    validation: Images
    test: Images
    classes: int
    scale: Tensor
    shift: Tensor
    checksum: str
    contents: Contents | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.pixels.shape[1:]
        return channels, height, width

    def scaled(self, pixels: Tensor) -> Tensor:
        """Return pixels (N, C, H, W) as the input of a network: scaled, float32, in the same shape."""
        x = pixels.to(torch.float32, copy=True)  # then in place: new memory costs ten times the arithmetic
        return x.mul_(self.scale).add_(self.shift)

    def to(self, device: torch.device, memory_format: torch.memory_format) -> "Data":
        """Return the data set on a device, with the images in this memory format."""
        scale, shift = self.scale, self.shift
        if memory_format == torch.channels_last:
            whole = (1, *self.shape)
            scale, shift = (x.expand(whole).contiguous(memory_format=memory_format)[0] for x in (scale, shift))
        train, validation, test = (part.to(device, memory_format) for part in (self.train, self.validation, self.test))
        scale, shift = scale.to(device), shift.to(device)
        return replace(self, train=train, validation=validation, test=test, scale=scale, shift=shift)


_loaded: dict[str, Data] = {}


def load_data(config: DatasetConfig, recorded_in: Path | None = None) -> Data:
    """Return the data set of a configuration, on the CPU; cache the last one. Raises ConfigError if it can't be used.

    recorded_in: the directory of a run that was trained on the data set, if there is one. If the data set is then
    missing or damaged, it is not downloaded, since it may have been moved: ConfigError says how to name its new place.
    """
    loader = find_loader(config.name)
    key = json.dumps(asdict(config))
    if key not in _loaded:
        problem = loader.problem(config) if recorded_in else None
        if recorded_in and problem:
            moved = "dataset.path=FOLDER" if config.path else "dataset.root=FOLDER"
            remedy = f"where it is elsewhere: {command('resume', recorded_in, moved)}"
            raise ConfigError(f"{recorded_in}: dataset={config.name}: {problem}; {remedy}")
        _loaded.clear()  # even a sweep over data sets needs only one at a time
        source = loader.load(config)
        if config.name not in DATASETS:
            check_source(source, config.name)
        _loaded[key] = split(source, config)
    return _loaded[key]


def check_source(source: Source, name: str) -> None:
    """Raise ConfigError where a plugin's data set is not what `Images` says."""
    shape = source.train.pixels.shape[1:]
    for part, images in (("training", source.train), ("test", source.test)):
        pixels, labels = images.pixels, images.labels
        facts = {
            f"pixels are uint8 (N, C, H, W), not {pixels.dtype} {tuple(pixels.shape)}": pixels.dtype == torch.uint8
            and pixels.dim() == 4,
            f"labels are int64 (N,), not {labels.dtype} {tuple(labels.shape)}": labels.dtype == torch.int64
            and labels.shape == pixels.shape[:1],
            "there is at least one image": len(labels) > 0,
            f"all images have the shape {tuple(shape)}": pixels.shape[1:] == shape,
            f"labels are from 0 to {len(source.classes) - 1}": bool(
                ((labels >= 0) & (labels < len(source.classes))).all()
            ),
        }
        broken = next((fact for fact, holds in facts.items() if not holds), None)
        if broken:
            raise ConfigError(f"dataset={name} cannot be used: of {part} images, {broken}")


def split(source: Source, config: DatasetConfig) -> Data:
    """Divide a published data set into training, validation and test images, and change them as the configuration says.

    The first `validation` training images are held out, as in the published experiments; of a folder of images, which
    is sorted by class, each class has its share of them. Raises ConfigError if the configuration doesn't fit the
    images.
    """
    source = of_classes(source, config.classes) if config.classes else source
    source = source.map(lambda images: binarized(images, source.peak)) if config.binarize else source
    images, augment = source.train, config.augment
    if config.name == "image_folder":
        images = images[stratified_order(images.labels)]
    fewer = f"choose fewer than the {len(images)} training images"
    require(config.validation < len(images), "dataset.validation", config.validation, fewer)
    colour = augment != "flip_crop" or images.pixels.shape[1] == 3
    require(colour, "dataset.augment", augment, "it is meant for colour images")
    validation, train = images[: config.validation], images[config.validation :]
    train = train if config.limit is None else train[: config.limit]
    parts = [train, validation, source.test]
    contents = contents_of(source, parts, config)
    if config.conditions:
        check_conditions(config.conditions, images)
        parts = [in_conditions(part, config.conditions, source.peak) for part in parts]
    train, validation, test = parts
    scale, shift = scaling(train.pixels, source.peak, config.standardize)
    return Data(train, validation, test, len(source.classes), scale, shift, checksum(parts), contents)


def stratified_order(labels: Tensor) -> Tensor:
    """Return a fixed order of images, int64 (N,). For every n, its first n have about the class proportions of all.

    Each class is shuffled; its i-th image of n, counted from 0, is placed at the fraction (i + 1/2) / n of the order.
    """
    place, random = torch.empty(len(labels), dtype=torch.float64), generator(0, "image_folder")
    for label in range(int(labels.max()) + 1):
        rows = torch.nonzero(labels == label).flatten()
        shuffled = rows[torch.randperm(len(rows), generator=random)]
        place[shuffled] = (torch.arange(len(rows), dtype=torch.float64) + 0.5) / len(rows)
    by_class = torch.argsort(labels, stable=True)
    return by_class[torch.argsort(place[by_class], stable=True)]


def contents_of(source: Source, parts: list[Images], config: DatasetConfig) -> Contents | None:
    """Return a summary of a folder of images; None for another data set. parts: training, validation and test images.

    Raises ConfigError if a class has no training image left.
    """
    if source.left_out is None:
        return None
    counts = [torch.bincount(part.labels, minlength=len(source.classes)).tolist() for part in parts]
    by_class = zip(*counts, strict=True)
    classes = {
        name: dict(zip(SPLITS, numbers, strict=True)) for name, numbers in zip(source.classes, by_class, strict=True)
    }
    for name, images in classes.items():
        if not images["train"]:
            limit = f" and dataset.limit={config.limit}" if config.limit is not None else ""
            raise ConfigError(
                f"dataset.path={config.path}: no image of class {printable(name)} is left to train on with "
                f"dataset.validation={config.validation}{limit}: {count(images['validation'], 'image')} of it held out"
            )
    return Contents(str(config.path), classes, source.left_out, source.notice)


def show_contents(contents: Contents) -> None:
    """Print a table of a folder of images, and its notice as an error.

    The table has the number of images of each class (100 classes at most), of all classes, and of files left out by
    reason.
    """
    classes, left_out = contents.classes, contents.left_out
    rows = [[name, *(f"{images[part]:,}" for part in SPLITS)] for name, images in classes.items()]
    if len(rows) > CLASSES_SHOWN:
        rows[CLASSES_SHOWN:] = [[f"… {len(rows) - CLASSES_SHOWN:,} more, all of them in run.json", "", "", ""]]
    totals = (sum(images[part] for images in classes.values()) for part in SPLITS)
    rows.append([f"all {len(classes):,} classes", *(f"{total:,}" for total in totals)])
    train, test = left_out["train"], left_out["test"]
    rows += [[f"left out: {reason}", f"{train[reason]:,}", "", f"{test[reason]:,}"] for reason in train | test]
    beside = sum(reasons.total() for place, reasons in left_out.items() if place not in SPLITS)
    if beside:
        rows.append([f"left out: {count(beside, 'file')} beside train/ and test/", "", "", ""])
    show_table(f"images of {contents.path}", ["class", *SPLITS], rows)
    if contents.notice:
        print_error(contents.notice)


def check_conditions(names: list[str], images: Images) -> None:
    """Raise ConfigError for an unknown condition, and for `rotated90` if the images are not square."""
    for name in names:
        require_choice("dataset.conditions", name, CONDITIONS)
    height, width = images.pixels.shape[2:]
    square = "rotated90" not in names or height == width
    require(square, "dataset.conditions", "rotated90", f"images of {height}×{width} are not square")


def of_classes(source: Source, chosen: list[int]) -> Source:
    """Return the data set with the images of the chosen classes alone. Their new labels are the positions in `chosen`.

    Raises ConfigError if one of the numbers is not a class.
    """
    classes = len(source.classes)
    known = all(0 <= number < classes for number in chosen)
    require(known, "dataset.classes", chosen, f"the classes are 0 to {classes - 1}")
    numbers = torch.full((classes,), -1)
    numbers[chosen] = torch.arange(len(chosen))

    def of_chosen(images: Images) -> Images:
        labels = numbers[images.labels]
        return Images(images.pixels[labels >= 0], labels[labels >= 0])

    return source.map(of_chosen, classes=tuple(source.classes[number] for number in chosen))


def binarized(images: Images, peak: int) -> Images:
    """Return copies with pixels above half the peak set to the peak, others to 0 (Ioffe & Szegedy 2015, §4.1)."""
    return Images((images.pixels > peak // 2).to(torch.uint8) * peak, images.labels)


def scaling(pixels: Tensor, peak: int, standardize: bool) -> tuple[Tensor, Tensor]:
    """Return the scale and shift, each (C, 1, 1), with which scale · pixels + shift lies in [0, 1].

    With `standardize`, each channel of these pixels (N, C, H, W) gets mean 0 and standard deviation 1 instead; if it is
    constant, 0 and 0.
    """
    channels = pixels.shape[1]
    if not standardize:
        return torch.full((channels, 1, 1), 1 / peak), torch.zeros(channels, 1, 1)
    counts = torch.stack([torch.bincount(pixels[:, c].flatten(), minlength=256) for c in range(channels)]).double()
    values = torch.arange(256.0, dtype=torch.float64)
    mean = (counts * values).sum(1) / counts.sum(1)
    deviation = ((counts * (values - mean[:, None]).square()).sum(1) / counts.sum(1)).sqrt().clamp_min(1e-6)
    return (1 / deviation).float().view(-1, 1, 1), (-mean / deviation).float().view(-1, 1, 1)


def checksum(parts: list[Images]) -> str:
    """Return the SHA-256 of the pixels and labels of all parts, in their order."""
    digest = hashlib.sha256()
    for images in parts:
        for tensor in (images.pixels, images.labels):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


_placed: dict[tuple[torch.device, torch.memory_format], tuple[Data, Data]] = {}


def data_on(device: torch.device, data: Data, memory_format: torch.memory_format) -> Data:
    """Return the data set on a device, with the images in this memory format.

    On a GPU all stacks share one copy for each memory format. It is cached because a compiled step holds on to the
    tensors with which it was compiled: a second copy would take up memory beside it.
    """
    if device.type == "cpu":
        return data.to(device, memory_format)
    key = device, memory_format
    if key not in _placed or _placed[key][0] is not data:
        _placed[key] = data, data.to(device, memory_format)
    return _placed[key][1]
