"""Picture files, decoded to RGB of 8 bits: upright, opaque, in the size asked for.

A file's content decides what it is, and whether it is read at all. Everything that the pixels depend on, but for Pillow
and its libraries, is in this file: a cache of them is keyed by its source.
"""

import logging
import multiprocessing
import os
import struct
import sys
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from rich.progress import track

from bnexp.runs.config import ConfigError
from bnexp.runs.console import console
from bnexp.runs.files import open_regular

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow starts no program for any of them
FORMAT_NAMES = "PNG, JPEG, WebP, BMP, GIF or TIFF"
GREY = {"1", "L", "LA", "La", "I;16", "I;16L", "I;16B"}  # Pillow's modes without colour
WITH_ALPHA = {"LA", "La", "RGBA", "RGBa"}  # in the last channel
SHADES = {"white": 255, "black": 0, "grey": 128}
UNSCALED = {"I": "whole numbers of 32 bits or with a sign", "F": "floating-point numbers"}  # by Pillow's mode
FULL = 2**16 - 1  # white, where a sample uses all of its 16 bits
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # of TIFF
PNG_SIGNATURE, PNG_GREY, PNG_RGB, PNG_RGBA = b"\x89PNG\r\n\x1a\n", 0, 2, 6
TRANSPOSITIONS = {  # by EXIF's Orientation: what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)  # a picture is decoded, or refused in one line


@dataclass(frozen=True)
class Depth:
    """What a picture with samples of 16 bits says about the value of white.

    kind: the number of bits that the file declares significant, if it does, and Pillow's mode; pictures of the same
    kind have the same white. upper: whether Pillow kept the upper 8 bits alone, so that `lowest` and `highest`, the
    range of the values, are multiples of 256. ink: black where it isn't transparent, so that no value has to be white.
    """

    kind: tuple[int | None, str]
    upper: bool
    lowest: int
    highest: int
    ink: bool


@dataclass(frozen=True)
class Picture:
    """A decoded image. pixels: uint8 (size, size, 3); coloured: whether the file's mode has colour; depth: what a file
    with 16 bits a sample says of where white lies, None for every other file.
    """

    pixels: np.ndarray
    coloured: bool
    depth: Depth | None


@dataclass(frozen=True)
class PngHeader:
    """What Pillow doesn't tell of a PNG, or tells in other units than those of the file.

    depth: bits of a sample; kind: PNG's type of colour; significant: bits (sBIT) or None; key: the samples of the one
    grey or colour that is transparent (tRNS), or None.
    """

    depth: int
    kind: int
    significant: int | None
    key: tuple[int, ...] | None


def decode(files: dict[str, list[str]], size: int, background: str) -> dict[str, np.ndarray]:
    """Decode the files of each split: uint8 (N, 3, size, size), or (N, 1, size, size) if none of them has colour.

    Raises ConfigError with the name of a file that can't be read, or with the range of 16-bit pictures that don't tell
    which value is white.
    """
    pixels = {split: np.empty((len(paths), size, size, 3), np.uint8) for split, paths in files.items()}
    depths, coloured = dict[str, Depth](), False
    hidden = multiprocessing.parent_process() is not None or not console.is_terminal  # a worker's parent has a display
    with warnings.catch_warnings(action="ignore"):
        for split, paths in files.items():
            progress = track(paths, f"decoding {split}", console=console, transient=True, disable=hidden)
            for row, path in enumerate(progress):
                picture = read_picture(path, size, background)
                pixels[split][row] = picture.pixels
                coloured = coloured or picture.coloured
                if picture.depth:
                    depths[path] = picture.depth
        whites = {kind: find_white(kind, depths) for kind in dict.fromkeys(depth.kind for depth in depths.values())}
        for split, paths in files.items():
            for row, path in enumerate(paths):
                if path in depths and (white := whites[depths[path].kind]) != FULL:
                    pixels[split][row] = read_picture(path, size, background, white).pixels
    channels = 3 if coloured else 1
    return {split: np.ascontiguousarray(part[..., :channels].transpose(0, 3, 1, 2)) for split, part in pixels.items()}


# ---- one file


def read_picture(path: str, size: int, background: str, white: int = FULL) -> Picture:
    """Decode one file; `white` is the value of white where a grey sample has 16 bits.

    Raises ConfigError with the name of one that can't be decoded.
    """
    try:
        with open_regular(path) as file:
            png = read_png_header(file)
            with Image.open(file, formats=FORMATS) as image:
                load_quietly(image)
                transposition = TRANSPOSITIONS.get(orientation(image))
                depth = depth_of(file, image, png)
                coloured = image.mode not in GREY
                rgb = opaque(file, image, png, SHADES[background], white)
        upright = rgb if transposition is None else rgb.transpose(transposition)
        if upright.size != (size, size):
            upright = upright.resize((size, size), Image.Resampling.BILINEAR)
        return Picture(np.asarray(upright), coloured, depth)
    except UnidentifiedImageError as error:
        why = f"by its content it is no {FORMAT_NAMES}, or of a kind of these that isn't read, or its header is damaged"
        raise unreadable(path, why) from error
    except Exception as error:  # decoders raise whatever they come across
        first = next(iter(str(error).splitlines()), "")
        raise unreadable(path, first or type(error).__name__) from error


def unreadable(path: str, why: str) -> ConfigError:
    """The error of a file that can't be read."""
    return ConfigError(f"dataset: {path} is not an image that can be read: {why}")


def orientation(image: Image.Image) -> int:
    """EXIF's orientation, or 1, upright, if none can be read: what else is wrong with EXIF doesn't matter."""
    with suppress(Exception):  # Pillow parses all of it, and raises whatever it comes across
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def load_quietly(image: Image.Image) -> None:
    """Decode a picture, without what libtiff writes to the process's standard error: what matters is also raised."""
    if not isinstance(image, TiffImageFile) or sys.__stderr__ is None:  # closed: its number may be another file's
        image.load()
        return
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        image.load()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def read_png_header(file: BinaryIO) -> PngHeader | None:
    """Read the chunks of a PNG before its pixels; None for another file."""
    if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
        return None
    chunks: dict[bytes, bytes] = {}
    while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
        start, length = file.tell(), int.from_bytes(head[:4], "big")
        chunks[head[4:]] = file.read(min(length, 16))
        file.seek(start + length + 4)  # behind the chunk's CRC, which Pillow checks
    header = chunks.get(b"IHDR", b"")
    if len(header) < 13:
        return None
    depth, kind = header[8], header[9]
    bits = max(chunks.get(b"sBIT", b"")[: 3 if kind in (PNG_RGB, PNG_RGBA) else 1], default=0)
    samples = {PNG_GREY: 1, PNG_RGB: 3}.get(kind, 0)
    key = chunks.get(b"tRNS", b"")[: 2 * samples]
    whole = samples > 0 and len(key) == 2 * samples
    values = tuple(value % 2**depth for value in struct.unpack(f">{samples}H", key)) if whole else None
    return PngHeader(depth, kind, bits if 1 <= bits <= depth else None, values)


# ---- transparency


def opaque(file: BinaryIO, image: Image.Image, png: PngHeader | None, shade: int, white: int) -> Image.Image:
    """Convert a picture to RGB, over a background of this shade where it is transparent."""
    if image.mode in UNSCALED:
        raise ValueError(f"it holds {UNSCALED[image.mode]}, of which none is white by itself: save it with 8 bits")
    picture, alpha = image, None
    if png and png.key is not None:
        alpha = Image.fromarray(np.where(is_key(file, image, png, png.key), 0, 255).astype(np.uint8))
        image.info.pop("transparency", None)  # Pillow's, in units that may be others than the pixels'
    if image.mode.startswith("I;16"):
        picture = Image.fromarray(eight_bits(np.asarray(image), white))
    elif alpha is None and image.has_transparency_data:
        picture = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        alpha = picture.getchannel("A")
    rgb = picture.convert("RGB")
    if alpha is None:
        return rgb
    canvas = Image.new("RGB", rgb.size, (shade, shade, shade))
    canvas.paste(rgb, mask=alpha)
    return canvas


def is_key(file: BinaryIO, image: Image.Image, png: PngHeader, key: tuple[int, ...]) -> np.ndarray:
    """Return which pixels have the one grey or colour that a PNG declares transparent (its tRNS chunk, `key`): bool (H,
    W). `file` is read for the lower bytes of 16-bit colour.
    """
    samples = np.asarray(image)
    if png.kind == PNG_GREY:
        step = 255 // (2**png.depth - 1) if image.mode == "L" else 1  # samples of 2 and 4 bits are spread to 0 to 255
        return np.asarray(samples == key[0] * step)
    differs: np.ndarray = samples ^ (np.array(key) >> (png.depth - 8))
    if png.depth == 16:
        differs |= lower_bytes(file, "RGB") ^ (np.array(key) & 255)
    return np.asarray(~differs.any(axis=-1))


def lower_bytes(file: BinaryIO, mode: str) -> np.ndarray:
    """The lower bytes of a PNG in RGB or RGBA with samples of 16 bits: uint8 (H, W, channels).

    Pillow keeps the upper bytes; told that the samples are the other way round, it keeps these.
    """
    with Image.open(file, formats=("PNG",)) as image:
        image.tile = [tile._replace(args=f"{mode};16L") for tile in image.tile]
        return np.asarray(image)


# ---- 16 bits


def eight_bits(samples: np.ndarray, white: int) -> np.ndarray:
    """Scale samples of 16 bits to 8, rounded: uint8 (H, W)."""
    steps = (np.arange(FULL + 1) * 255 + white // 2) // white
    return np.take(steps.clip(0, 255).astype(np.uint8), samples)


def depth_of(file: BinaryIO, image: Image.Image, png: PngHeader | None) -> Depth | None:
    """The depth of a picture with 16 bits a sample; None for another one. Raises ValueError where white is 0."""
    bits, declared = (png.depth, png.significant) if png else (8, None)
    if isinstance(image, TiffImageFile):
        bits = max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))
        declared = bits if bits < 16 else None
        if bits > 8 and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            raise ValueError("its 16-bit samples are white at 0: save it with white at the top")
    if bits <= 8 or image.mode in UNSCALED:
        return None
    samples, upper = np.asarray(image), not image.mode.startswith("I;16")
    if image.mode in WITH_ALPHA:  # which is full in any picture, and shows no colour where it is 0
        samples = visible(samples)
    lowest, highest = (int(samples.min()), int(samples.max())) if samples.size else (0, 0)
    scale = 256 if upper else 1
    ink = png is not None and image.mode == "RGBA" and highest == 0 and not visible(lower_bytes(file, "RGBA")).any()
    return Depth((declared, image.mode), upper, lowest * scale, highest * scale, ink)


def visible(samples: np.ndarray) -> np.ndarray:
    """Colours of the pixels that aren't transparent, of (H, W, channels and alpha): (N, channels)."""
    return np.asarray(samples[samples[..., -1] > 0][..., :-1])


def find_white(kind: tuple[int | None, str], depths: dict[str, Depth]) -> int:
    """The value of white of a folder's pictures of one kind, judged over all of them: a single one may be dark.

    Values within the declared bits are those bits; values above them, or in the upper half of 16 bits where nothing is
    declared, use all 16. Raises ConfigError with the range where neither is so. `depths`: path → of all kinds.
    """
    same = {path: depth for path, depth in depths.items() if depth.kind == kind}
    if all(depth.ink for depth in same.values()):
        return FULL
    declared, highest = kind[0], max(depth.highest for depth in same.values())
    white = 2**declared - 1 if declared and highest < 2**declared else FULL
    cut = [path for path, depth in same.items() if depth.upper and white != FULL]  # their lower bits are needed
    if cut or (declared is None and highest <= FULL // 2):
        lowest = min(depth.lowest for depth in same.values())
        raise ConfigError(
            f"dataset: {[*cut, *same][0]} has samples of 16 bits and, with the {len(same)} of its kind, values from "
            f"{lowest} to {highest}, none of which is known as white: save them with 8 bits, scaled to 0 to {FULL}, or "
            "as grey PNG with sBIT"
        )
    return white
