"""Pictures in PATH/train/CLASS/ and PATH/test/CLASS/, decoded once into a cache under dataset.root.

Here is what is listed and how the cache is kept; `decoding.py` reads the files.
"""

import hashlib
import json
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import PIL
import torch
from PIL import features

from bnexp.config import ConfigError, DatasetConfig
from bnexp.datasets import decoding
from bnexp.datasets.images import Images, Source
from bnexp.files import read_regular
from bnexp.storage import DamagedFileError, load_tensors, save_tensors

SPLITS = ("train", "test")
SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")  # of macOS's archives; of Synology's previews
HIDDEN, APPLE_DOUBLE, SYSTEM = "hidden", "AppleDouble (._NAME)", f"system ({', '.join(SYSTEM_FOLDERS)})"
OUTSIDE, OTHER = "not in a class's folder", "not named as a picture"
BESIDE = "beside train/ and test/"
LIBRARIES = ("libjpeg_turbo", "jpg", "zlib", "libtiff", "webp", "littlecms2")  # of Pillow: what decodes
TICK = 0.02  # seconds within which a file system may give two changes the same time


class State(NamedTuple):
    """What changes as a file is replaced: its size, the times of its content's and its inode's last change in
    nanoseconds, the number of its inode.
    """

    size: int
    modified: int
    changed: int
    inode: int


class File(NamedTuple):
    path: str
    state: State


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder by split and class, sorted, and what was left out, counted by reason and split."""

    files: dict[str, dict[str, list[File]]]
    left_out: dict[str, dict[str, int]]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.files["train"])

    def of(self, split: str) -> list[File]:
        return [file for files in self.files[split].values() for file in files]

    def labels(self, split: str) -> torch.Tensor:
        numbers = {name: number for number, name in enumerate(self.classes)}
        return torch.tensor([numbers[name] for name, files in self.files[split].items() for _ in files])


def location(config: DatasetConfig) -> str:
    return config.path or "dataset.path is not set"


def problem(config: DatasetConfig) -> str | None:
    """What keeps the folder from being used, or None; the images themselves are looked at when they are decoded."""
    try:
        list_folder(config)
    except ConfigError as error:
        return str(error)
    return None


def load(config: DatasetConfig) -> Source:
    listing = list_folder(config)
    pixels, notice = load_pixels(config, listing)
    train, test = (Images(pixels[split], listing.labels(split)) for split in SPLITS)
    return Source(train, test, listing.classes, left_out=listing.left_out, notice=notice)


# ---- what is in the folder


def list_folder(config: DatasetConfig) -> Listing:
    """List the pictures; no file is opened. Raises ConfigError with the file or folder that is at fault."""
    if not config.path:
        raise ConfigError("dataset.path is not set: the folder that holds train/CLASS/*.png|jpg|… and test/CLASS/…")
    prefix = f"dataset.path={config.path}"
    files: dict[str, dict[str, list[File]]] = {}
    left_out: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        folder, reasons = os.path.join(config.path, split), Counter[str]()
        try:
            files[split] = list_split(folder, reasons)
        except OSError as error:
            raise ConfigError(f"{prefix}: {error.filename} cannot be read: {error.strerror}") from error
        except ConfigError as error:
            raise ConfigError(f"{prefix}: {error}") from error
        if not any(files[split].values()):
            raise ConfigError(f"{prefix}: {folder} holds no CLASS/*.png, *.jpg or other pictures{said(reasons)}")
        count_in(left_out, split, reasons)
    check_classes(files, prefix)
    count_in(left_out, BESIDE, beside_splits(config.path))
    return Listing(files, left_out)


def count_in(left_out: dict[str, dict[str, int]], place: str, reasons: Counter[str]) -> None:
    for reason, count in reasons.items():
        left_out.setdefault(reason, dict.fromkeys((*SPLITS, BESIDE), 0))[place] = count


def check_classes(files: dict[str, dict[str, list[File]]], prefix: str) -> None:
    train = files["train"]
    unknown = [name for name, found in files["test"].items() if found and name not in train]
    if unknown:
        raise ConfigError(f"{prefix}: test/{unknown[0]} is a class that train/ doesn't have")
    files["test"] = {name: found for name, found in files["test"].items() if found}
    if len(train) < 2:
        raise ConfigError(f"{prefix}: train/ has the one class {next(iter(train))}, at least 2 are needed")


def list_split(folder: str, left_out: Counter[str]) -> dict[str, list[File]]:
    """The pictures of each class. Raises ConfigError and OSError; for a class of train/ without any, too."""
    place = os.path.realpath(folder)
    above = {place, *map(str, Path(place).parents)}
    classes: dict[str, list[File]] = {}
    for entry, status in entries(folder, left_out):
        if not stat.S_ISDIR(status.st_mode):
            left_out[OUTSIDE] += 1
            continue
        reasons = Counter[str]()
        classes[entry.name] = list_class(entry.path, above, reasons)
        if not classes[entry.name] and os.path.basename(folder) == "train":
            raise ConfigError(f"{entry.path} is a class without images{said(reasons)}")
        left_out.update(reasons)
    return classes


def list_class(folder: str, above: set[str], left_out: Counter[str]) -> list[File]:
    """The pictures in a folder and in those below it. Links are followed, but none to a folder in `above` or twice to
    the same one: raises ConfigError.
    """
    found, folders, seen = list[File](), [folder], set(above)
    while folders:
        current = folders.pop()
        place = os.path.realpath(current)
        if place in seen:
            raise ConfigError(f"{current} is a link that leads back to {place}")
        seen.add(place)
        for entry, status in entries(current, left_out):
            if stat.S_ISDIR(status.st_mode):
                folders.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                found.append(File(entry.path, state_of(status)))
            else:
                left_out[OTHER] += 1
    return sorted(found, key=lambda file: file.path.split(os.sep))


def entries(folder: str, left_out: Counter[str]) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """The files and folders in a folder by name, but those that are left out whatever they are. Raises OSError for a
    link that leads nowhere or to itself, ConfigError for what would hang or act when it is opened.
    """
    with os.scandir(folder) as listed:
        every = sorted(listed, key=lambda entry: entry.name)
    for entry in every:
        if reason := why_left_out(entry.name):
            left_out[reason] += files_in(entry)
            continue
        status = entry.stat()
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{entry.path} is a named pipe, a device or a socket, which is not opened: remove it")
        yield entry, status


def why_left_out(name: str) -> str | None:
    if name.startswith("._"):
        return APPLE_DOUBLE
    if name in SYSTEM_FOLDERS:
        return SYSTEM
    return HIDDEN if name.startswith(".") else None


def files_in(entry: os.DirEntry[str]) -> int:
    """How many files a folder and those below it hold; of a file 1."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))


def beside_splits(folder: str) -> Counter[str]:
    """How many files there are beside train/ and test/, by reason."""
    found = Counter[str]()
    with os.scandir(folder) as listed:
        for entry in listed:
            if entry.name not in SPLITS:
                found[why_left_out(entry.name) or BESIDE] += files_in(entry)
    return found


def state_of(status: os.stat_result) -> State:
    return State(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def said(reasons: Counter[str]) -> str:
    parts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f" (left out: {parts})" if parts else ""


# ---- the cache


def load_pixels(config: DatasetConfig, listing: Listing) -> tuple[dict[str, torch.Tensor], str | None]:
    """uint8 (N, C, size, size) of each split, from the cache where it has them; and what is to be said about a cache
    that can't be used, which is done without.
    """
    cache, notice = cache_path(config, listing), None
    try:
        return read_cache(cache, config, listing), None
    except FileNotFoundError:
        pass
    except (OSError, DamagedFileError) as error:
        notice = f"{brief(error)}: the pictures are decoded anew"
    time.sleep(TICK)  # from here on a change of a file that was listed gives it another time
    paths = {split: [file.path for file in listing.of(split)] for split in SPLITS}
    decoded = decoding.decode(paths, config.size, config.background)
    pixels = {split: torch.from_numpy(part) for split, part in decoded.items()}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(cache, pixels, {"source": ascii(config.path)})  # bytes may be no UTF-8
    except OSError as error:
        notice = f"{brief(error)}: without a cache, each process decodes the pictures"
    return pixels, notice


def read_cache(path: Path, config: DatasetConfig, listing: Listing) -> dict[str, torch.Tensor]:
    """Raises FileNotFoundError where there is none, OSError where it can't be read, DamagedFileError for another's."""
    pixels = load_tensors(path)
    for split in SPLITS:
        shape = (len(listing.of(split)), config.size, config.size)
        part = pixels.get(split)
        if part is None or part.dtype != torch.uint8 or (part.shape[0], *part.shape[2:]) != shape:
            raise DamagedFileError(f"{path} holds other pictures")
    return pixels


def cache_path(config: DatasetConfig, listing: Listing) -> Path:
    """Named after everything that the decoded pixels depend on: the files by their names and states, so that each
    replacement makes another cache, size and background, and what decodes.
    """
    assert config.path
    every = [file for split in SPLITS for file in listing.of(split)]
    files = [(os.path.relpath(file.path, config.path), file.state) for file in every]
    digests = [] if times_tell(every) else [file_digest(file.path) for file in every]
    content = json.dumps([config.size, config.background, decoder(), files, digests])
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    return Path(config.root) / "cache" / f"image_folder-{config.size}-{key}.safetensors"


def times_tell(files: list[File]) -> bool:
    """Whether the file system has a time of change that nobody can set, in fractions of a second: some (FAT, SSHFS)
    give that of the content, which a copy keeps. There the contents have to be read.
    """
    states = [file.state for file in files]
    return any(s.changed != s.modified for s in states) and any(s.changed % 10**9 for s in states)


def file_digest(path: str) -> str:
    """SHA-256 of a file's content. Raises ConfigError where it can't be read."""
    try:
        return hashlib.sha256(read_regular(Path(path))).hexdigest()
    except OSError as error:
        raise decoding.unreadable(path, str(error.strerror or error)) from error


def decoder() -> list[str | None]:
    """The versions of Pillow and its libraries, and our own source."""
    source = hashlib.sha256(Path(decoding.__file__).read_bytes()).hexdigest()
    return [source, PIL.__version__, *(features.version(name) for name in LIBRARIES)]


def brief(error: Exception) -> str:
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
