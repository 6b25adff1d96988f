"""Picture files, decoded to 8-bit RGB: upright, without transparency, in the size asked for.

Whether and how a file is decoded depends on its content, not on its name. Everything that the pixels depend on, except
Pillow and its libraries, is in this file: the name of the cache of decoded pixels depends on its source code.
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

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow decodes them without starting another program
FORMAT_NAMES = "PNG, JPEG, WebP, BMP, GIF or TIFF"
GREY = {"1", "L", "LA", "La", "I;16", "I;16L", "I;16B"}  # Pillow's modes without colour
WITH_ALPHA = {"LA", "La", "RGBA", "RGBa"}  # modes whose last channel is alpha
SHADES = {"white": 255, "black": 0, "grey": 128}
UNSCALED = {"I": "whole numbers of 32 bits or with a sign", "F": "floating-point numbers"}  # Pillow's mode → samples
FULL = 2**16 - 1  # white, if samples use all of their 16 bits
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # two tags of TIFF, a value of the second
PNG_SIGNATURE, PNG_GREY, PNG_RGB, PNG_RGBA = b"\x89PNG\r\n\x1a\n", 0, 2, 6
TRANSPOSITIONS = {  # EXIF's Orientation → the transposition that makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)  # errors are raised instead


@dataclass(frozen=True)
class Depth:
    """The information that a picture with 16-bit samples gives about which value is white.

    kind: the number of significant bits that the file declares, or None, and Pillow's mode; pictures of the same kind
    have the same white. lowest, highest: the range of the samples, as 16-bit values; multiples of 256 in modes of which
    Pillow loads only the upper 8 bits.
    """

    kind: tuple[int | None, str]
    lowest: int
    highest: int


@dataclass(frozen=True)
class PngHeader:
    """Facts about a PNG that Pillow doesn't give, or gives in other units than the file's.

    depth: bits per sample. kind: PNG's colour type. significant: number of significant bits (sBIT; the largest of the
    channels), or None. key: the samples of the one grey value or colour that is transparent (tRNS), or None.
    """

    depth: int
    kind: int
    significant: int | None
    key: tuple[int, ...] | None


def decode(files: dict[str, list[str]], size: int, background: str) -> dict[str, np.ndarray]:
    """Decode the files of each split: uint8 (N, 3, size, size), or (N, 1, size, size) if no file of any split has
    a mode with colour.

    files: split → paths. size: height and width of the result. background: a key of SHADES, shown where a picture is
    transparent. Raises ConfigError that names a file that can't be decoded, or gives the range of 16-bit pictures whose
    white can't be determined.
    """
    pixels = {split: np.empty((len(paths), size, size, 3), np.uint8) for split, paths in files.items()}
    depths, coloured = dict[str, Depth](), False
    hidden = multiprocessing.parent_process() is not None or not console.is_terminal  # workers show no progress
    with warnings.catch_warnings(action="ignore"):
        for split, paths in files.items():
            progress = track(paths, f"decoding {split}", console=console, transient=True, disable=hidden)
            for row, path in enumerate(progress):
                pixels[split][row], has_colour, depth = read_picture(path, size, background)
                coloured = coloured or has_colour
                if depth:
                    depths[path] = depth
        whites = {kind: find_white(kind, depths) for kind in dict.fromkeys(depth.kind for depth in depths.values())}
        for split, paths in files.items():
            for row, path in enumerate(paths):
                if path in depths and (white := whites[depths[path].kind]) != FULL:
                    pixels[split][row], *_ = read_picture(path, size, background, white)
    channels = 3 if coloured else 1
    return {split: np.ascontiguousarray(part[..., :channels].transpose(0, 3, 1, 2)) for split, part in pixels.items()}


# ---- one file


def read_picture(path: str, size: int, background: str, white: int = FULL) -> tuple[np.ndarray, bool, Depth | None]:
    """Decode one file, turn it upright and resize it to size × size, which may change its proportions.

    background: the key of SHADES that is shown where the picture is transparent. white: the value that becomes 255, of
    the samples of a 16-bit grey picture. Returns the pixels, uint8 (size, size, 3), whether the file's mode has colour,
    and its `Depth`, or None if the file shows nothing of which value is white. Raises ConfigError that names a file
    that can't be decoded.
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
        return np.asarray(upright), coloured, depth
    except UnidentifiedImageError as error:
        why = f"by its content it is no {FORMAT_NAMES}, or of a kind of these that isn't read, or its header is damaged"
        raise unreadable(path, why) from error
    except Exception as error:  # decoders can raise any exception
        first = next(iter(str(error).splitlines()), "")
        raise unreadable(path, first or type(error).__name__) from error


def unreadable(path: str, why: str) -> ConfigError:
    """Make the error for a file that can't be read. why: the reason."""
    return ConfigError(f"dataset: {path} is not an image that can be read: {why}")


def orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, or 1 (upright) if there is none or it can't be read. Errors in EXIF are ignored."""
    with suppress(Exception):  # Pillow parses all of EXIF, and can raise any exception
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def load_quietly(image: Image.Image) -> None:
    """Load a picture's pixels; for a TIFF, discard what libtiff meanwhile writes to the process's standard error.

    Errors that keep the picture from being decoded are raised all the same.
    """
    if not isinstance(image, TiffImageFile) or sys.__stderr__ is None:  # if closed, another file may have its number
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
    """Read the chunks of a PNG that precede its pixels. Return None for another file or an incomplete header."""
    if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
        return None
    chunks: dict[bytes, bytes] = {}
    while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
        start, length = file.tell(), int.from_bytes(head[:4], "big")
        chunks[head[4:]] = file.read(min(length, 16))
        file.seek(start + length + 4)  # skip the chunk's CRC, which Pillow checks
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
    """Convert a loaded picture to 8-bit RGB; transparent parts get a background of grey value `shade` (0 to 255).

    white: the 16-bit value of a grey sample that becomes 255. Raises ValueError for the modes in UNSCALED. If the
    PNG has a `key`, the entry `transparency` is removed from `image.info`.
    """
    if image.mode in UNSCALED:
        raise ValueError(f"it holds {UNSCALED[image.mode]}, of which none is white by itself: save it with 8 bits")
    picture, alpha = image, None
    if png and png.key is not None:
        alpha = Image.fromarray(np.where(is_key(file, image, png, png.key), 0, 255).astype(np.uint8))
        image.info.pop("transparency", None)  # Pillow's own key, whose units can differ from the pixels'
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
    """Return which pixels have the grey value or colour that a PNG declares transparent: bool (H, W).

    key: that value, in the file's units (tRNS). For 16-bit colour, the lower bytes are read from `file`.
    """
    samples = np.asarray(image)
    if png.kind == PNG_GREY:
        step = 255 // (2**png.depth - 1) if image.mode == "L" else 1  # Pillow scales 2 and 4 bits to 0 to 255
        return np.asarray(samples == key[0] * step)
    differs: np.ndarray = samples ^ (np.array(key) >> (png.depth - 8))
    if png.depth == 16:
        differs |= lower_bytes(file, "RGB") ^ (np.array(key) & 255)
    return np.asarray(~differs.any(axis=-1))


def lower_bytes(file: BinaryIO, mode: str) -> np.ndarray:
    """Return the lower bytes of the samples of a 16-bit PNG, with mode RGB or RGBA: uint8 (H, W, channels).

    Pillow keeps only the upper bytes. If it is told that the byte order is reversed, it keeps the lower ones instead.
    """
    with Image.open(file, formats=("PNG",)) as image:
        image.tile = [tile._replace(args=f"{mode};16L") for tile in image.tile]
        return np.asarray(image)


# ---- 16 bits


def eight_bits(samples: np.ndarray, white: int) -> np.ndarray:
    """Scale 16-bit samples (H, W) to uint8: `white` and all values above it become 255; others are rounded."""
    steps = (np.arange(FULL + 1) * 255 + white // 2) // white
    return np.take(steps.clip(0, 255).astype(np.uint8), samples)


def depth_of(file: BinaryIO, image: Image.Image, png: PngHeader | None) -> Depth | None:
    """Return the depth of a picture with more than 8 bits per sample; else, or for samples in UNSCALED, None.

    It is also None for an RGBA PNG whose visible pixels are all black, which says nothing about white. Raises
    ValueError for a TIFF with more than 8 bits in which 0 is white.
    """
    bits, declared = (png.depth, png.significant) if png else (8, None)
    if isinstance(image, TiffImageFile):
        bits = max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))
        declared = bits if bits < 16 else None
        if bits > 8 and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:
            raise ValueError("its 16-bit samples are white at 0: save it with white at the top")
    if bits <= 8 or image.mode in UNSCALED:
        return None
    samples = np.asarray(image)
    if image.mode in WITH_ALPHA:  # alpha itself is always high, and hidden colours don't count
        samples = visible(samples)
    lowest, highest = (int(samples.min()), int(samples.max())) if samples.size else (0, 0)
    if png and image.mode == "RGBA" and highest == 0 and not visible(lower_bytes(file, "RGBA")).any():
        return None
    scale = 1 if image.mode.startswith("I;16") else 256
    return Depth((declared, image.mode), lowest * scale, highest * scale)


def visible(samples: np.ndarray) -> np.ndarray:
    """Return the colours of all pixels whose alpha is above 0: samples (H, W, channels + alpha) → (M, channels)."""
    return np.asarray(samples[samples[..., -1] > 0][..., :-1])


def find_white(kind: tuple[int | None, str], depths: dict[str, Depth]) -> int:
    """Return the value of white of the pictures of one kind. It is judged over all: a single one may be dark.

    If the file declares significant bits and all values fit in them, white is the highest value of so many bits. It is
    65535 if values exceed these bits, or if no bits are declared and values reach the upper half of 16 bits. Otherwise,
    or if white is below 65535 and Pillow dropped the lower bits, it raises ConfigError with the range. depths: path →
    depth, for pictures of all kinds.
    """
    same = {path: depth for path, depth in depths.items() if depth.kind == kind}
    (declared, mode), highest = kind, max(depth.highest for depth in same.values())
    white = 2**declared - 1 if declared and highest < 2**declared else FULL
    cut = white != FULL and not mode.startswith("I;16")
    if cut or (declared is None and highest <= FULL // 2):
        lowest = min(depth.lowest for depth in same.values())
        raise ConfigError(
            f"dataset: {next(iter(same))} has samples of 16 bits and, with the {len(same)} of its kind, values from "
            f"{lowest} to {highest}, none of which is known as white: save them with 8 bits, scaled to 0 to {FULL}, or "
            "as grey PNG with sBIT"
        )
    return white
