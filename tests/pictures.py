"""Pictures made byte by byte, and what they look like by NumPy alone: no decoder under test has a part in either."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

SIDE = 8
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # PNG's types of colour
SHADES = {"white": 255, "black": 0, "grey": 128}

Chunk = tuple[bytes, bytes]


def png(samples: np.ndarray, depth: int, kind: int, *chunks: Chunk) -> bytes:
    """A PNG of samples (H, W, C), with chunks before its pixels."""
    height, width = samples.shape[:2]
    rows = packed(samples.reshape(height, -1), depth)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def packed(rows: np.ndarray, depth: int) -> np.ndarray:
    """Samples of so many bits as bytes, the highest bits first."""
    bits = (rows[..., None].astype(np.int64) >> np.arange(depth)[::-1]) & 1
    return np.packbits(bits.reshape(len(rows), -1).astype(np.uint8), axis=1)


def tiff(samples: np.ndarray, depth: int, photometric: int, *extra: tuple[int, int]) -> bytes:
    """An uncompressed TIFF of samples (H, W, C) of up to 16 bits, with more tags of one short each."""
    height, width, channels = samples.shape
    data = samples.astype("<u2").tobytes() if depth == 16 else packed(samples.reshape(height, -1), depth).tobytes()
    tags: dict[int, tuple[int, list[int]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [depth] * channels),
        259: (3, [1]),
        262: (3, [photometric]),
        273: (4, [8]),
        277: (3, [channels]),
        278: (4, [height]),
        279: (4, [len(data)]),
        **{tag: (3, [value]) for tag, value in extra},
    }
    data += b"\0" * (len(data) % 2)
    start = 8 + len(data)
    beside = start + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, (kind, numbers) in sorted(tags.items()):
        value = struct.pack(f"<{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(value) > 4:
            value, values = struct.pack("<I", beside + len(values)), values + value
        entries += struct.pack("<HHI", tag, kind, len(numbers)) + value.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", start) + data + struct.pack("<H", len(tags)) + entries + bytes(4) + values


def bmp(rgba: np.ndarray) -> bytes:
    """A BMP of version 4 with four masks, which Pillow reads but doesn't write."""
    height, width = rgba.shape[:2]
    data = rgba[::-1, :, [2, 1, 0, 3]].astype(np.uint8).tobytes()
    masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII4I", 108, width, height, 1, 32, 3, len(data), 2835, 2835, 0, 0, *masks)
    header = header.ljust(108, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + 108 + len(data), 0, 0, 14 + 108) + header + data


def exif(orientation: int, odd: bool = False) -> bytes:
    """EXIF with an orientation and, where `odd`, a width that is text, which Pillow reads but can't write."""
    entries = [struct.pack("<HHI4s", 0x100, 2, 4, b"odd\0")] if odd else []
    entries.append(struct.pack("<HHII", 0x112, 3, 1, orientation))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What is to be shown of a picture with EXIF's orientation: by definition, where its row 0 and column 0 are."""
    across = pixels.swapaxes(0, 1)
    return {
        1: pixels,  # top, left
        2: pixels[:, ::-1],  # top, right
        3: pixels[::-1, ::-1],  # bottom, right
        4: pixels[::-1],  # bottom, left
        5: across,  # left, top
        6: across[:, ::-1],  # right, top
        7: across[::-1, ::-1],  # right, bottom
        8: across[::-1],  # left, bottom
    }[orientation]


def saved(array: np.ndarray, kind: str, mode: str | None = None, **settings: Any) -> bytes:
    """As Pillow writes an array in a format."""
    image = Image.fromarray(array)
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, kind, **settings)
    return file.getvalue()


def over(colours: np.ndarray, alpha: np.ndarray, shade: int) -> np.ndarray:
    """Colours (H, W, C) of 8 bits over a shade, rounded to the nearest."""
    seen = alpha.astype(int)[..., None]
    return ((colours.astype(int) * seen + shade * (255 - seen) + 127) // 255).astype(np.uint8)


def drawn(seed: int, channels: int, top: int) -> np.ndarray:
    """Random samples from 0 to top: int64 (SIDE, SIDE, channels)."""
    return np.random.default_rng(seed).integers(0, top + 1, (SIDE, SIDE, channels))


def big(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}H", *numbers)


def keyed(seed: int, depth: int, channels: int, spare: int = 0) -> Callable[[int], tuple[bytes, np.ndarray]]:
    """A PNG in which one grey or colour is transparent. Others differ from it by one step of a sample alone."""
    samples = drawn(seed, channels, 2**depth - 1)
    key = samples[0, 0].copy()
    samples[1::2, ::2] = key
    samples[0, 1] = samples[2, 3] = key ^ np.array([1] + [0] * (channels - 1))
    samples[0, 2] = key ^ np.array([0] * (channels - 1) + [1])
    kind = GREY if channels == 1 else RGB
    file = png(samples, depth, kind, (b"tRNS", big(*(key | spare))))
    top = 2**depth - 1
    eight = samples >> 8 if depth == 16 and channels == 3 else (samples * 255 + top // 2) // top
    alpha = np.where((samples == key).all(-1), 0, 255)
    return lambda shade: (file, over(eight, alpha, shade))


def with_alpha(seed: int, depth: int, channels: int) -> Callable[[int], tuple[bytes, np.ndarray]]:
    samples = drawn(seed, channels, 2**depth - 1)
    samples[0, :4, -1], samples[1, :4, -1] = 0, 2**depth - 1
    file = png(samples, depth, GREY_ALPHA if channels == 2 else RGBA)
    eight = samples >> (depth - 8)
    return lambda shade: (file, over(eight[..., :-1], eight[..., -1], shade))


def with_palette(seed: int, depth: int, alphas: bytes) -> Callable[[int], tuple[bytes, np.ndarray]]:
    """A PNG whose palette is transparent as far as `alphas` goes."""
    size = min(2**depth, 40)
    palette, indices = np.random.default_rng(seed).integers(0, 256, (size, 3)), drawn(seed, 1, size - 1)
    colours = palette.astype(np.uint8).tobytes()
    file = png(indices, depth, PALETTE, (b"PLTE", colours), (b"tRNS", alphas))
    table = np.full(size, 255)
    table[: len(alphas)] = [*alphas]
    return lambda shade: (file, over(palette[indices[..., 0]], table[indices[..., 0]], shade))


def by_pillow(seed: int, kind: str, channels: int, **settings: Any) -> Callable[[int], tuple[bytes, np.ndarray]]:
    samples = drawn(seed, channels, 255).astype(np.uint8)
    file = saved(samples, kind, **settings)
    return lambda shade: (file, over(samples[..., :-1], samples[..., -1], shade))


def bitmap(seed: int) -> Callable[[int], tuple[bytes, np.ndarray]]:
    samples = drawn(seed, 4, 255)
    return lambda shade: (bmp(samples), over(samples[..., :3], samples[..., 3], shade))


def gif() -> Callable[[int], tuple[bytes, np.ndarray]]:
    """With colours, of which one is transparent."""
    palette = np.random.default_rng(5).integers(0, 256, (16, 3)).astype(np.uint8)
    indices = drawn(5, 1, 15)[..., 0].astype(np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    file = io.BytesIO()
    image.save(file, "GIF", transparency=3, optimize=False)
    return lambda shade: (file.getvalue(), over(palette[indices], np.where(indices == 3, 0, 255), shade))


# Every way of being transparent: a file, and its pixels (SIDE, SIDE, C) over a shade.
TRANSPARENT: dict[str, Callable[[int], tuple[bytes, np.ndarray]]] = {
    "rgba": with_alpha(1, 8, 4),
    "rgba16": with_alpha(2, 16, 4),
    "la": with_alpha(3, 8, 2),
    "la16": with_alpha(4, 16, 2),
    "palette_table": with_palette(6, 8, bytes(range(0, 250, 9))),
    "palette_index": with_palette(7, 8, b"\xff\xff\x00"),
    "palette_first": with_palette(8, 8, b"\x00"),
    "palette_4_bits": with_palette(9, 4, b"\x40\x00\xff\x80"),
    "palette_1_bit": with_palette(10, 1, b"\x00"),
    "grey_1_bit": keyed(11, 1, 1),
    "grey_2_bits": keyed(12, 2, 1),
    "grey_4_bits": keyed(13, 4, 1),
    "grey_8_bits": keyed(14, 8, 1),
    "grey_16_bits": keyed(15, 16, 1),
    "grey_spare_bits": keyed(16, 4, 1, spare=0xAB00),
    "rgb": keyed(17, 8, 3),
    "rgb16": keyed(18, 16, 3),
    "rgb_spare_bits": keyed(19, 8, 3, spare=0x0100),
    "webp": by_pillow(20, "WEBP", 4, lossless=True, exact=True),
    "gif": gif(),
    "tiff_rgba": by_pillow(21, "TIFF", 4),
    "tiff_rgba_packed": by_pillow(22, "TIFF", 4, compression="tiff_lzw"),
    "tiff_la": by_pillow(23, "TIFF", 2),
    "bmp": bitmap(24),
}
