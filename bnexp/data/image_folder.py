"""Pictures in PATH/train/CLASS/ and PATH/test/CLASS/, decoded once into a cache under dataset.root.

This file lists the folder and keeps the cache; `decoding.py` reads the pictures.
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

from bnexp.data import decoding
from bnexp.data.images import Images, LeftOut, Source
from bnexp.runs.config import ConfigError, DatasetConfig
from bnexp.runs.files import read_regular
from bnexp.runs.tensors import DamagedFileError, load_tensors, save_tensors

SPLITS = ("train", "test")
SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")  # of macOS's archives; of Synology's previews
BESIDE = "beside train/ and test/"
LIBRARIES = ("libjpeg_turbo", "jpg", "zlib", "libtiff", "webp", "littlecms2")  # of Pillow: what decodes
TICK = 0.02  # seconds within which a file system may give two changes the same time


class File(NamedTuple):
    """A picture, and what changes when it is replaced: size, times of its content's and inode's change (ns), inode."""

    path: str
    size: int
    modified: int
    changed: int
    inode: int


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder by split and class, sorted, and how many files were left out."""

    files: dict[str, dict[str, list[File]]]
    left_out: LeftOut

    def of(self, split: str) -> list[File]:
        """The pictures of a split, class by class."""
        return [file for files in self.files[split].values() for file in files]

    def labels(self, split: str) -> torch.Tensor:
        """The class of each picture of a split by its place among the classes of train/, int64 (N,)."""
        numbers = {name: number for number, name in enumerate(self.files["train"])}
        return torch.tensor([numbers[name] for name, files in self.files[split].items() for _ in files])


def location(config: DatasetConfig) -> str:
    """Return the folder of the data set, or that `dataset.path` is not set, to show to the user."""
    return config.path or "dataset.path is not set"


def problem(config: DatasetConfig) -> str | None:
    """What keeps the folder from being used, or None; pictures are looked at when they are decoded."""
    try:
        list_folder(config)
    except ConfigError as error:
        return str(error)
    return None


def load(config: DatasetConfig) -> Source:
    """Read the pictures, from the cache where it has them. Raises ConfigError where the folder can't be used."""
    listing = list_folder(config)
    pixels, notice = load_pixels(config, listing)
    train, test = (Images(pixels[split], listing.labels(split)) for split in SPLITS)
    return Source(train, test, tuple(listing.files["train"]), left_out=listing.left_out, notice=notice)


# ---- what is in the folder


def list_folder(config: DatasetConfig) -> Listing:
    """List the pictures; no file is opened. Raises ConfigError with the file or folder that is at fault."""
    if not config.path:
        raise ConfigError("dataset.path is not set: the folder that holds train/CLASS/*.png|jpg|… and test/CLASS/…")
    left_out: LeftOut = {place: Counter() for place in (*SPLITS, BESIDE)}
    try:
        files = {split: list_split(os.path.join(config.path, split), left_out[split]) for split in SPLITS}
        check_classes(files)
        with os.scandir(config.path) as entries:
            for entry in (entry for entry in entries if entry.name not in SPLITS):
                left_out[BESIDE][why_left_out(entry.name) or BESIDE] += files_in(entry)
    except OSError as error:
        raise ConfigError(f"dataset.path={config.path}: {error.filename} cannot be read: {error.strerror}") from error
    except ConfigError as error:
        raise ConfigError(f"dataset.path={config.path}: {error}") from error
    return Listing(files, left_out)


def check_classes(files: dict[str, dict[str, list[File]]]) -> None:
    """Drop test/'s empty classes. Raises ConfigError for one that train/ lacks, and where train/ has a single one."""
    train = files["train"]
    files["test"] = {name: pictures for name, pictures in files["test"].items() if pictures}
    for name in files["test"]:
        if name not in train:
            raise ConfigError(f"test/{name} is a class that train/ doesn't have")
    if len(train) < 2:
        raise ConfigError(f"train/ has the one class {next(iter(train))}, at least 2 are needed")


def list_split(folder: str, left_out: Counter[str]) -> dict[str, list[File]]:
    """List the pictures of each class, and count what is left out.

    Raises ConfigError where there are none, or none in a class of train/, and as `list_class` does.
    """
    place = os.path.realpath(folder)
    above, classes = {place, *map(str, Path(place).parents)}, dict[str, list[File]]()
    for entry, status in entries_of(folder, left_out):
        if not stat.S_ISDIR(status.st_mode):
            left_out["not in a class's folder"] += 1
            continue
        reasons = Counter[str]()
        classes[entry.name] = list_class(entry.path, above, reasons)
        if not classes[entry.name] and os.path.basename(folder) == "train":
            raise ConfigError(f"{entry.path} is a class without images{listed(reasons)}")
        left_out.update(reasons)
    if not any(classes.values()):
        raise ConfigError(f"{folder} holds no CLASS/*.png, *.jpg or other pictures{listed(left_out)}")
    return classes


def list_class(folder: str, above: set[str], left_out: Counter[str]) -> list[File]:
    """List the pictures in a folder and in those below it, sorted, and count what is left out.

    Links are followed. Raises ConfigError for one to a folder in `above`, or to a folder that was already listed;
    and as `entries_of` does.
    """
    files, folders, seen = list[File](), [folder], set(above)
    while folders:
        current = folders.pop()
        place = os.path.realpath(current)
        if place in seen:
            raise ConfigError(f"{current} is a link that leads back to {place}")
        seen.add(place)
        for entry, status in entries_of(current, left_out):
            if stat.S_ISDIR(status.st_mode):
                folders.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                files.append(file_of(entry.path, status))
            else:
                left_out["not named as a picture"] += 1
    return sorted(files, key=lambda file: file.path.split(os.sep))


def entries_of(folder: str, left_out: Counter[str]) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """The files and folders in a folder by name, but for those whose names say that they are no data.

    Raises OSError for a link that leads nowhere or to itself, ConfigError for what would hang or act when it is opened.
    """
    with os.scandir(folder) as entries:
        by_name = sorted(entries, key=lambda entry: entry.name)
    for entry in by_name:
        if reason := why_left_out(entry.name):
            left_out[reason] += files_in(entry)
            continue
        status = entry.stat()
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{entry.path} is a named pipe, a device or a socket, which is not opened: remove it")
        yield entry, status


def why_left_out(name: str) -> str | None:
    """Why a file or folder of this name is left out, or None."""
    if name.startswith("._"):
        return "AppleDouble (._NAME)"
    if name in SYSTEM_FOLDERS:
        return f"system ({', '.join(SYSTEM_FOLDERS)})"
    return "hidden" if name.startswith(".") else None


def files_in(entry: os.DirEntry[str]) -> int:
    """How many files a folder and those below it hold; 1 for a file."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))


def file_of(path: str, status: os.stat_result) -> File:
    """A picture by what the system says of its file."""
    return File(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def listed(reasons: Counter[str]) -> str:
    """The end of a message: what was left out."""
    parts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f" (left out: {parts})" if parts else ""


# ---- the cache


def load_pixels(config: DatasetConfig, listing: Listing) -> tuple[dict[str, torch.Tensor], str | None]:
    """The pixels of each split, uint8 (N, C, size, size), from the cache or decoded into it.

    Where the cache can't be used the pictures are decoded all the same, and a notice that says so is returned.
    """
    cache, notice = cache_path(config, listing), None
    try:
        return read_cache(cache, config.size, listing), None
    except FileNotFoundError:
        pass
    except (OSError, DamagedFileError) as error:
        notice = f"{describe(error)}: the pictures are decoded anew"
    time.sleep(TICK)  # from here on a change of a file that was listed gives it another time
    paths = {split: [file.path for file in listing.of(split)] for split in SPLITS}
    decoded = decoding.decode(paths, config.size, config.background)
    pixels = {split: torch.from_numpy(part) for split, part in decoded.items()}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(cache, pixels, {"source": ascii(config.path)})  # bytes may be no UTF-8
    except OSError as error:
        notice = f"{describe(error)}: without a cache, each process decodes the pictures"
    return pixels, notice


def read_cache(path: Path, size: int, listing: Listing) -> dict[str, torch.Tensor]:
    """Read a cache. Raises OSError where there is none or it can't be read, DamagedFileError for other pictures."""
    pixels = load_tensors(path)
    for split in SPLITS:
        shape, part = (len(listing.of(split)), size, size), pixels.get(split)
        if part is None or part.dtype != torch.uint8 or (part.shape[0], *part.shape[2:]) != shape:
            raise DamagedFileError(f"{path} holds other pictures")
    return pixels


def cache_path(config: DatasetConfig, listing: Listing) -> Path:
    """The cache's path, named after all that the pixels depend on: files, as they are now, size, background, code."""
    files = [file for split in SPLITS for file in listing.of(split)]
    states = [(os.path.relpath(file.path, config.path), *file[1:]) for file in files]
    digests = [] if times_tell(files) else [content_digest(file.path) for file in files]
    content = json.dumps([config.size, config.background, decoder(), states, digests])
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    return Path(config.root) / "cache" / f"image_folder-{config.size}-{key}.safetensors"


def times_tell(files: list[File]) -> bool:
    """Whether the file system records when a file changed, in fractions of a second and so that nobody can set it.

    Some (FAT, SSHFS) give the time of the content instead, which a copy keeps. There the contents have to be read.
    """
    return any(file.changed != file.modified for file in files) and any(file.changed % 10**9 for file in files)


def content_digest(path: str) -> str:
    """SHA-256 of a picture's file. Raises ConfigError where it can't be read."""
    try:
        return hashlib.sha256(read_regular(Path(path))).hexdigest()
    except OSError as error:
        raise decoding.unreadable(path, str(error.strerror or error)) from error


def decoder() -> list[str | None]:
    """What decodes: our own source, and the versions of Pillow and its libraries."""
    source = hashlib.sha256(Path(decoding.__file__).read_bytes()).hexdigest()
    return [source, PIL.__version__, *(features.version(name) for name in LIBRARIES)]


def describe(error: Exception) -> str:
    """An error in a few words."""
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
