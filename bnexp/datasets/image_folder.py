"""Any images in PATH/train/CLASS/ and PATH/test/CLASS/, decoded once into a cache under dataset.root."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from rich.progress import track

from bnexp.config import ConfigError, DatasetConfig
from bnexp.datasets.images import Images, Source
from bnexp.storage import DamagedFileError, load_tensors, save_tensors

SUFFIXES = {".png", ".jpg", ".jpeg"}
GREY = {"1", "L", "LA", "I", "I;16"}  # Pillow's modes without colour


def location(config: DatasetConfig) -> str:
    return config.path or "dataset.path is not set"


def problem(config: DatasetConfig) -> str | None:
    """What keeps the folder from being used, or None; the images themselves are looked at when they are decoded."""
    try:
        list_files(config)
    except ConfigError as error:
        return str(error)
    return None


def load(config: DatasetConfig) -> Source:
    files, classes = list_files(config)
    try:
        tensors = load_cached(config, files, classes)
    except OSError as error:
        raise ConfigError(f"dataset.path={config.path}: {error.filename or error}: {error.strerror}") from error
    train, test = (Images(tensors[f"{split}.pixels"], tensors[f"{split}.labels"]) for split in ("train", "test"))
    return Source(train, test, classes)


def load_cached(
    config: DatasetConfig, files: dict[str, list[Path]], classes: tuple[str, ...]
) -> dict[str, torch.Tensor]:
    cache = cache_path(config, files)
    try:
        return load_tensors(cache)
    except (FileNotFoundError, DamagedFileError):
        tensors = decode(files, classes, config.size)
    cache.parent.mkdir(parents=True, exist_ok=True)
    save_tensors(cache, tensors, {"source": str(config.path)})
    return tensors


def list_files(config: DatasetConfig) -> tuple[dict[str, list[Path]], tuple[str, ...]]:
    """The image files of each split, sorted, and the classes. Raises ConfigError with the folder that is at fault."""
    if not config.path:
        raise ConfigError("dataset.path is not set: the folder that holds train/CLASS/*.png|jpg and test/CLASS/…")
    root = Path(config.path)
    try:
        files = {split: image_files(root / split) for split in ("train", "test")}
        classes = tuple(sorted({path.parent.name for path in files["train"]}))
    except OSError as error:
        raise ConfigError(f"dataset.path={root}: {error.filename} cannot be read: {error.strerror}") from error
    for split, paths in files.items():
        if not paths:
            raise ConfigError(f"dataset.path={root}: {root / split} holds no CLASS/*.png or *.jpg")
    unknown = sorted({path.parent.name for path in files["test"]} - set(classes))
    if unknown:
        raise ConfigError(f"dataset.path={root}: test/{unknown[0]} is a class that train/ doesn't have")
    if len(classes) < 2:
        raise ConfigError(f"dataset.path={root}: train/ has the one class {classes[0]}, at least 2 are needed")
    return files, classes


def image_files(folder: Path) -> list[Path]:
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return [path for name in classes for path in sorted(name.iterdir()) if path.suffix.lower() in SUFFIXES]


def cache_path(config: DatasetConfig, files: dict[str, list[Path]]) -> Path:
    """Named after everything the decoded tensors depend on: other files, times or sizes make another cache."""
    listing = []
    for path in files["train"] + files["test"]:
        status = path.stat()
        listing.append((str(path.absolute()), status.st_size, status.st_mtime_ns))
    key = hashlib.sha256(json.dumps([config.size, listing]).encode()).hexdigest()[:16]
    return Path(config.root) / "cache" / f"image_folder-{config.size}-{key}.safetensors"


def decode(files: dict[str, list[Path]], classes: tuple[str, ...], size: int) -> dict[str, torch.Tensor]:
    """uint8 (N, 3, size, size) per split, or (N, 1, size, size) where every image is grey; and the labels."""
    tensors, coloured = {}, False
    numbers = {name: number for number, name in enumerate(classes)}
    for split, paths in files.items():
        pixels = np.empty((len(paths), size, size, 3), dtype=np.uint8)
        for row, path in enumerate(track(paths, f"decoding {split}", transient=True, disable=not sys.stdout.isatty())):
            pixels[row], colour = read_image(path, size)
            coloured = coloured or colour
        tensors[f"{split}.pixels"] = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        tensors[f"{split}.labels"] = torch.tensor([numbers[path.parent.name] for path in paths])
    if not coloured:
        for split in files:
            tensors[f"{split}.pixels"] = tensors[f"{split}.pixels"][:, :1]
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def read_image(path: Path, size: int) -> tuple[np.ndarray, bool]:
    """(size, size, 3) and whether the file has colour. Raises ConfigError with the file's name."""
    try:
        with Image.open(path) as image:
            coloured = image.mode not in GREY
            upright = ImageOps.exif_transpose(image)
            rgb = (eight_bits(upright) if upright.mode.startswith("I") else upright).convert("RGB")
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ConfigError(f"dataset: {path} is not an image that can be read ({str(error).splitlines()[0]})") from error
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb), coloured


def eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey image in 256 steps, where Pillow's conversion would clip it."""
    return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
