"""Pictures in PATH/train/CLASS/ and PATH/test/CLASS/, decoded once and cached under dataset.root.

This file lists the folder, and reads and writes the cache; `decoding.py` decodes the pictures.
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
from bnexp.runs.files import read_regular, reason
from bnexp.runs.tensors import DamagedFileError, load_tensors, save_tensors

SPLITS = ("train", "test")
SUFFIXES = {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")  # made by macOS in archives, and by Synology for previews
BESIDE = "beside train/ and test/"
LIBRARIES = ("libjpeg_turbo", "jpg", "zlib", "libtiff", "webp", "littlecms2")  # with which Pillow decodes
TICK = 0.02  # seconds; a file system may record two changes within them at the same time


class File(NamedTuple):
    """A picture file, with facts that change when it is replaced.

    size: bytes. modified, changed: when its content and its inode last changed, in ns. inode: its number.
    """

    path: str
    size: int
    modified: int
    changed: int
    inode: int


@dataclass(frozen=True)
class Listing:
    """The contents of a folder of images.

    files: split → class → picture files; classes and files are sorted. left_out: numbers of other files, by part of the
    folder (train, test, or beside them) and reason.
    """

    files: dict[str, dict[str, list[File]]]
    left_out: LeftOut

    def of(self, split: str) -> list[File]:
        """Return the picture files of a split, class by class."""
        return [file for files in self.files[split].values() for file in files]

    def labels(self, split: str) -> torch.Tensor:
        """Return the labels of a split's pictures, int64 (N,). A label is the position of a class in train/."""
        numbers = {name: number for number, name in enumerate(self.files["train"])}
        return torch.tensor([numbers[name] for name, files in self.files[split].items() for _ in files])


def location(config: DatasetConfig) -> str:
    """Return the folder of the data set, or that `dataset.path` is not set, as a text to show to the user."""
    return config.path or "dataset.path is not set"


def problem(config: DatasetConfig) -> str | None:
    """Return why the folder can't be used, or None. The pictures are not read: they are checked in decoding."""
    try:
        list_folder(config)
    except ConfigError as error:
        return str(error)
    return None


def load(config: DatasetConfig) -> Source:
    """Read the pictures from the cache, or decode and cache them.

    Raises ConfigError if the folder or a picture can't be used.
    """
    listing = list_folder(config)
    pixels, notice = load_pixels(config, listing)
    train, test = (Images(pixels[split], listing.labels(split)) for split in SPLITS)
    return Source(train, test, tuple(listing.files["train"]), left_out=listing.left_out, notice=notice)


# ---- what is in the folder


def list_folder(config: DatasetConfig) -> Listing:
    """List the picture files of both splits, and count all other files. No file is opened.

    Raises ConfigError if dataset.path is not set, or if something in the folder can't be used, which it names.
    """
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
    """Remove empty classes of test/ from `files`, in place.

    Raises ConfigError if test/ then has a class that train/ lacks, and if train/ has a single class.
    """
    train = files["train"]
    files["test"] = {name: pictures for name, pictures in files["test"].items() if pictures}
    for name in files["test"]:
        if name not in train:
            raise ConfigError(f"test/{name} is a class that train/ doesn't have")
    if len(train) < 2:
        raise ConfigError(f"train/ has the one class {next(iter(train))}, at least 2 are needed")


def list_split(folder: str, left_out: Counter[str]) -> dict[str, list[File]]:
    """Return the picture files of each class in train/ or test/, and count all other files in `left_out`, in place.

    Raises ConfigError if the folder holds no picture at all, if a class of train/ holds none, and as `list_class` does;
    OSError as `entries_of` does.
    """
    place = os.path.realpath(folder)
    above, classes = {place, *map(str, Path(place).parents)}, dict[str, list[File]]()
    for entry, status in entries_of(folder, left_out):
        if not stat.S_ISDIR(status.st_mode):
            left_out["not in a class's folder"] += 1
            continue
        reasons = Counter[str]()
        classes[entry.name] = list_class(entry.path, set(above), reasons)
        if not classes[entry.name] and os.path.basename(folder) == "train":
            raise ConfigError(f"{entry.path} is a class without images{listed(reasons)}")
        left_out.update(reasons)
    if not any(classes.values()):
        raise ConfigError(f"{folder} holds no CLASS/*.png, *.jpg or other pictures{listed(left_out)}")
    return classes


def list_class(folder: str, seen: set[str], left_out: Counter[str]) -> list[File]:
    """Return the picture files in a folder and in all below it, sorted; count other files in `left_out`, in place.

    Links are followed; hidden files and folders count as other files. seen: the folders above and those already listed,
    to which this one is added. Raises ConfigError for a link to one of them, and as `entries_of` does.
    """
    place, files = os.path.realpath(folder), list[File]()
    if place in seen:
        raise ConfigError(f"{folder} is a link that leads back to {place}")
    seen.add(place)
    for entry, status in entries_of(folder, left_out):
        if stat.S_ISDIR(status.st_mode):
            files += list_class(entry.path, seen, left_out)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            files.append(file_of(entry.path, status))
        else:
            left_out["not named as a picture"] += 1
    return files


def entries_of(folder: str, left_out: Counter[str]) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """Yield the files and folders in a folder, sorted by name, each with its status; links are followed.

    Hidden files and folders, and those that macOS and Synology make, are skipped: `left_out` counts their files by the
    reason. Raises OSError for a folder that can't be read and a link that leads nowhere or to itself, and ConfigError
    for named pipes, devices and sockets, which are not safe to open.
    """
    with os.scandir(folder) as entries:
        by_name = sorted(entries, key=lambda entry: entry.name)
    for entry in by_name:
        if why := why_left_out(entry.name):
            left_out[why] += files_in(entry)
            continue
        status = entry.stat()
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{entry.path} is a named pipe, a device or a socket, which is not opened: remove it")
        yield entry, status


def why_left_out(name: str) -> str | None:
    """Return why a file or folder with this name is not read, or None: it is hidden, or macOS or Synology made it."""
    if name.startswith("._"):
        return "AppleDouble (._NAME)"
    if name in SYSTEM_FOLDERS:
        return f"system ({', '.join(SYSTEM_FOLDERS)})"
    return "hidden" if name.startswith(".") else None


def files_in(entry: os.DirEntry[str]) -> int:
    """Return the number of files in a folder and all below it, except links to folders there; 1 for a file or link."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))


def file_of(path: str, status: os.stat_result) -> File:
    """Make a `File` from a path and its status."""
    return File(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def listed(reasons: Counter[str]) -> str:
    """Return the end of a message, with the number of files left out for each reason; "" if there are none."""
    parts = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return f" (left out: {parts})" if parts else ""


# ---- the cache


def load_pixels(config: DatasetConfig, listing: Listing) -> tuple[dict[str, torch.Tensor], str | None]:
    """Return the pixels of each split, uint8 (N, C, size, size), and a notice for the user or None.

    The pixels are read from the cache; if it is missing or damaged, the pictures are decoded and the cache is written.
    The notice says that the cache was damaged or could not be read or written. Raises ConfigError as `content_digest`
    and `decoding.decode` do.
    """
    cache, notice = cache_path(config, listing), None
    try:
        return read_cache(cache, config.size, listing), None
    except FileNotFoundError:
        pass
    except (OSError, DamagedFileError) as error:
        notice = f"{reason(error)}: the pictures are decoded anew"
    time.sleep(TICK)  # if a listed file changes after this, its recorded time changes
    paths = {split: [file.path for file in listing.of(split)] for split in SPLITS}
    decoded = decoding.decode(paths, config.size, config.background)
    pixels = {split: torch.from_numpy(part) for split, part in decoded.items()}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(cache, pixels, {"source": ascii(config.path)})  # a path may not be valid UTF-8
    except OSError as error:
        notice = f"{reason(error)}: without a cache, each process decodes the pictures"
    return pixels, notice


def read_cache(path: Path, size: int, listing: Listing) -> dict[str, torch.Tensor]:
    """Read the pixels of each split from a cache file: split → uint8 (N, channels, size, size).

    Raises FileNotFoundError if there is none, OSError if it can't be read, and DamagedFileError if it is damaged or
    doesn't hold as many pictures as the `Listing`, in this size.
    """
    pixels = load_tensors(path)
    for split in SPLITS:
        shape, part = (len(listing.of(split)), size, size), pixels.get(split)
        if part is None or part.dtype != torch.uint8 or (part.shape[0], *part.shape[2:]) != shape:
            raise DamagedFileError(f"{path} holds other pictures")
    return pixels


def cache_path(config: DatasetConfig, listing: Listing) -> Path:
    """Return the cache's path. Its name has a digest of everything that the pixels depend on.

    This is the size, the background, the decoder, and the files: their paths, sizes, times and inodes, and their
    contents if their times don't show every change. Raises ConfigError as `content_digest` does.
    """
    files = [file for split in SPLITS for file in listing.of(split)]
    states = [(os.path.relpath(file.path, config.path), *file[1:]) for file in files]
    digests = [] if times_tell(files) else [content_digest(file.path) for file in files]
    content = json.dumps([config.size, config.background, decoder(), states, digests])
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    return Path(config.root) / "cache" / f"image_folder-{config.size}-{key}.safetensors"


def times_tell(files: list[File]) -> bool:
    """Return whether the times of inode changes show every change of a file. No user can set them, but some file
    systems lack them.

    They count if one has fractions of a second, and one differs from the content's time: FAT and SSHFS give the
    content's time instead, which copying preserves.
    """
    return any(file.changed != file.modified for file in files) and any(file.changed % 10**9 for file in files)


def content_digest(path: str) -> str:
    """Return the SHA-256 of a picture file. Raises ConfigError if it can't be read."""
    try:
        return hashlib.sha256(read_regular(Path(path))).hexdigest()
    except OSError as error:
        raise decoding.unreadable(path, str(error.strerror or error)) from error


def decoder() -> list[str | None]:
    """Return what identifies the decoder: the SHA-256 of `decoding.py`, versions of Pillow and its libraries."""
    source = hashlib.sha256(Path(decoding.__file__).read_bytes()).hexdigest()
    return [source, PIL.__version__, *(features.version(name) for name in LIBRARIES)]
