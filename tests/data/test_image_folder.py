"""Image folders through the command line: which files are read and as what, the table of it, the split, the cache."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from conftest import Bnexp, Outcome
from pictures import (
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    RGBA,
    SHADES,
    SIDE,
    TRANSPARENT,
    drawn,
    exif,
    png,
    saved,
    tiff,
    turned,
)
from PIL import Image
from safetensors.numpy import load_file, save_file

from bnexp.data import decoding, image_folder
from bnexp.data import load as data
from bnexp.runs.config import ConfigError

TRAIN = ("train", "steps=1", "eval.first_every=1", "threads=1", "arch.hidden=[8]", "batch_size=2")
WORDS = ("dataset=image_folder", "dataset.path=pictures", "dataset.root=data", f"dataset.size={SIDE}")
ONE = "dataset.validation=1"


class HangsError(BaseException):
    """No Exception, which a command would take for a fault of a picture."""


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """A command that waits for what never comes fails."""

    def give_up(signum: int, frame: FrameType | None) -> None:
        raise HangsError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(name: str, content: bytes | None = None, shade: int = 0) -> Path:
    """A file under pictures/; without contents a plain picture."""
    path = Path("pictures", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(saved(np.full((SIDE, SIDE), shade, np.uint8), "PNG") if content is None else content)
    return path


def make_folder(train: int = 4, test: int = 2) -> None:
    """Two classes of plain pictures, each of another shade."""
    for number, name in enumerate(("a", "b")):
        for split, count in (("train", train), ("test", test)):
            for index in range(count):
                put(f"{split}/{name}/{index}.png", shade=100 * number + 10 * index + (split == "test"))


def fetch(bnexp: Bnexp, *words: str) -> Outcome:
    """List and decode, as every command does; nothing is kept in this process from one command to the next."""
    data._loaded.clear()
    return bnexp("data", "fetch", *WORDS, ONE, *words)


def decoded(bnexp: Bnexp, *words: str, split: str = "train") -> np.ndarray:
    """The pixels of a split, (N, H, W, C), by class and name, as they are in the cache."""
    shutil.rmtree("data", ignore_errors=True)
    outcome = fetch(bnexp, *words)
    assert (outcome.status, outcome.err) == (0, "")
    return load_file(cached())[split].transpose(0, 2, 3, 1)


def cached() -> Path:
    [cache] = Path("data/cache").glob("*.safetensors")
    return cache


def refused(bnexp: Bnexp, *parts: str, words: tuple[str, ...] = ()) -> str:
    """The line of a refusal, which says these parts."""
    outcome = fetch(bnexp, *words)
    assert outcome.status == 2, outcome
    assert outcome.err.count("\n") == 1
    assert "Traceback" not in outcome.err
    assert not [part for part in parts if part not in outcome.err], outcome.err
    return outcome.err


def trained(bnexp: Bnexp, *words: str) -> dict[str, Any]:
    """Record of a run."""
    data._loaded.clear()
    shutil.rmtree("run", ignore_errors=True)
    outcome = bnexp(*TRAIN, *WORDS, *words, "hydra.run.dir=run")
    assert outcome.status == 0, outcome.err
    record: dict[str, Any] = json.loads(Path("run/run.json").read_text())
    return record


def in_colour(pixels: np.ndarray) -> np.ndarray:
    return np.broadcast_to(pixels.reshape(*pixels.shape[:2], -1), (*pixels.shape[:2], 3))


# ---- which files are read


SIX = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = ("png", "jpg", "JPEG", "jpe", "jfif", "webp", "bmp", "gif", "tif", "TIFF")


@pytest.mark.parametrize("kind", SIX)
def test_six_formats_are_read_whatever_their_suffix(bnexp: Bnexp, kind: str) -> None:
    make_folder()
    pixels = (np.mgrid[:SIDE, :SIDE].sum(0) * 8 + 60).astype(np.uint8)
    settings = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    for suffix in SUFFIXES:
        put(f"train/a/x.{suffix}", saved(pixels, kind, **settings))
    found = decoded(bnexp)
    assert len(found) == 8 + len(SUFFIXES)
    assert int(np.abs(found[4 : 4 + len(SUFFIXES)].astype(int) - pixels[..., None]).max()) <= (kind == "JPEG")


def test_the_first_frame_of_an_animation_is_read(bnexp: Bnexp) -> None:
    make_folder()
    frames = [Image.new("RGB", (SIDE, SIDE), (shade, 0, 0)) for shade in (51, 102, 204)]
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        settings = {"lossless": True} if kind == "WEBP" else {}
        frames[0].save(f"pictures/train/a/x.{kind}", kind, save_all=True, append_images=frames[1:], **settings)
    assert (decoded(bnexp)[4:8] == [51, 0, 0]).all()


GHOST = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
PCX, TGA = (saved(np.zeros((SIDE, SIDE), np.uint8), kind) for kind in ("PCX", "TGA"))
OTHERS = {
    "eps.png": GHOST,
    "eps.gif": GHOST,
    "eps.tiff": b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 32, len(GHOST), 0, 0, 0, 0) + bytes(4) + GHOST,
    "pcx.png": PCX,
    "tga.bmp": TGA,
    "ico.png": saved(np.zeros((16, 16), np.uint8), "ICO"),
    "jpeg2000.jpg": saved(np.zeros((SIDE, SIDE), np.uint8), "JPEG2000"),
    "avif.jpg": saved(np.zeros((SIDE, SIDE, 3), np.uint8), "AVIF"),
    "damaged_avif.jpg": saved(np.zeros((SIDE, SIDE, 3), np.uint8), "AVIF")[:-20],
    "ppm.png": saved(np.zeros((SIDE, SIDE), np.uint8), "PPM"),
    "wmf.png": b"\xd7\xcd\xc6\x9a" + bytes(80),
    "svg.webp": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "text.jpeg": b"no picture",
    "nothing.png": b"",
    "head.png": b"\x89PNG\r\n\x1a\n" + bytes(30),
    "cut.png": png(drawn(0, 3, 255), 8, RGB)[:-60],
    "cut.jpg": saved(drawn(0, 3, 255).astype(np.uint8), "JPEG")[:-40],
    "cut.tif": tiff(drawn(0, 3, 255), 8, 2)[:-120],
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_contents_are_refused_by_name_and_start_no_program(
    bnexp: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make_folder()
    for program in ("gs", "gswin64c"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / program).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / "bin" / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    put(f"train/b/{name}", OTHERS[name])
    refused(bnexp, f"pictures/train/b/{name}")
    assert not (tmp_path / "started").exists()


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        before = Path.cwd()
        os.chdir(path.parent)  # a socket's path may be 108 bytes long
        server.bind(path.name)
        os.chdir(before)


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_pair_of_loops(path: Path) -> None:
    path.symlink_to("other")
    path.with_name("other").symlink_to(path.name)


TRAPS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "socket": make_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "linked pipe": lambda path: (os.mkfifo("pipe"), path.symlink_to(Path("pipe").absolute())),
    "loop": make_loop,
    "loops": make_pair_of_loops,
    "nowhere": lambda path: path.symlink_to("gone.png"),
    "own folder": lambda path: path.symlink_to("."),
    "class": lambda path: path.symlink_to("../a"),
    "split": lambda path: path.symlink_to("../../train"),
    "above": lambda path: path.symlink_to(Path("pictures").absolute()),
    "root": lambda path: path.symlink_to("/"),
    "twice": lambda path: (path.symlink_to("../b"), path.with_name("z").symlink_to("../b")),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_what_hangs_or_never_ends_is_refused_by_name(bnexp: Bnexp, trap: str) -> None:
    make_folder()
    TRAPS[trap](Path("pictures/train/a/x.png"))
    refused(bnexp, "dataset.path=pictures", "pictures/train/a/")


@pytest.mark.parametrize("place", ["train/x", "train/a/x", "train/a/deep/down/x.gif", "test/b/x.txt"])
def test_a_pipe_is_refused_wherever_it_is(bnexp: Bnexp, place: str) -> None:
    make_folder()
    put(f"{place}.png")
    os.mkfifo(Path("pictures", place))
    refused(bnexp, f"pictures/{place}")


def test_what_has_become_a_pipe_since_it_was_listed_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ConfigError, match=r"x\.png .*not a regular file"):
        decoding.decode({"train": [str(tmp_path / "x.png")]}, SIDE, "white")


def test_links_to_files_and_folders_elsewhere_are_followed(bnexp: Bnexp) -> None:
    make_folder()
    put("../elsewhere/one.png", shade=77)
    Path("pictures/train/a/linked").symlink_to(Path("elsewhere").absolute())
    Path("pictures/train/b/x.png").symlink_to(Path("elsewhere/one.png").absolute())
    Path("pictures/train/c").symlink_to(Path("elsewhere").absolute())
    assert decoded(bnexp)[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 77, 100, 110, 120, 130, 77, 77]


# ---- what is in them


@pytest.mark.parametrize("background", SHADES)
def test_every_way_of_being_transparent_shows_the_background(bnexp: Bnexp, background: str) -> None:
    make_folder()
    for name, make in TRANSPARENT.items():
        put(f"train/c/{name}.png", make(0)[0])
    found = decoded(bnexp, f"dataset.background={background}")[8:]
    for pixels, name in zip(found, sorted(TRANSPARENT), strict=True):
        assert np.array_equal(pixels, in_colour(TRANSPARENT[name](SHADES[background])[1])), name


def test_a_glyph_on_nothing_is_black_on_white(bnexp: Bnexp) -> None:
    """And of one channel where all pictures are grey."""
    make_folder()
    glyph = np.zeros((SIDE, SIDE, 2), int)
    glyph[2:6, 3, 1] = 255
    put("train/a/x.png", png(glyph, 8, GREY_ALPHA))
    found = decoded(bnexp)[4]
    assert found.shape == (SIDE, SIDE, 1)
    assert np.array_equal(found[..., 0], np.where(glyph[..., 1], 0, 255))


def test_an_unknown_background_is_refused(bnexp: Bnexp) -> None:
    make_folder()
    refused(bnexp, "dataset.background=red", "white, black, grey", words=("dataset.background=red",))
    assert bnexp(*TRAIN, "dataset=digits", "dataset.background=black").status == 2


OPAQUE: dict[str, tuple[bytes, np.ndarray]] = {
    **{
        f"grey of {depth} bits": (
            png(drawn(depth, 1, 2**depth - 1), depth, GREY),
            drawn(depth, 1, 2**depth - 1) * (255 // (2**depth - 1)),
        )
        for depth in (1, 2, 4, 8)
    },
    "rgb": (png(drawn(31, 3, 255), 8, RGB), drawn(31, 3, 255)),
    **{
        f"palette of {depth} bits": (
            png(drawn(40 + depth, 1, 2**depth - 1), depth, PALETTE, (b"PLTE", bytes(range(3 * 2**depth)))),
            drawn(40 + depth, 1, 2**depth - 1) * 3 + [0, 1, 2],
        )
        for depth in (1, 2, 4)
    },
    "tiff grey": (tiff(drawn(32, 1, 255), 8, 1), drawn(32, 1, 255)),
    "tiff white at 0": (tiff(drawn(33, 1, 255), 8, 0), 255 - drawn(33, 1, 255)),
    "tiff one bit": (tiff(drawn(34, 1, 1), 1, 1), drawn(34, 1, 1) * 255),
    "tiff rgb": (tiff(drawn(35, 3, 255), 8, 2), drawn(35, 3, 255)),
    "bmp": (saved(drawn(36, 3, 255).astype(np.uint8), "BMP"), drawn(36, 3, 255)),
    "webp": (saved(drawn(37, 3, 255).astype(np.uint8), "WEBP", lossless=True), drawn(37, 3, 255)),
}


def test_opaque_pictures_keep_their_pixels(bnexp: Bnexp) -> None:
    make_folder()
    for name, (content, _) in OPAQUE.items():
        put(f"train/c/{name}.png", content)
    for pixels, name in zip(decoded(bnexp)[8:], sorted(OPAQUE), strict=True):
        assert np.array_equal(pixels, in_colour(OPAQUE[name][1])), name


def test_cmyk_is_converted_as_pillow_does(bnexp: Bnexp) -> None:
    make_folder()
    content = saved(drawn(1, 3, 255).astype(np.uint8), "JPEG", "CMYK")
    expected = np.asarray(Image.open(put("train/a/x.jpg", content)).convert("RGB"))
    assert np.array_equal(decoded(bnexp)[4], expected)


# ---- 16 bits


def deep(seed: int, top: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Grey of 16 bits, with values from 0 to `top`, which both occur."""
    return png(ramp(seed, top), 16, GREY, *chunks)


def ramp(seed: int, top: int) -> np.ndarray:
    samples = drawn(seed, 1, top)
    samples[0, 0], samples[0, 1] = 0, top
    return samples


def scaled(samples: np.ndarray, white: int) -> np.ndarray:
    return np.floor(samples * 255 / white + 0.5).astype(np.uint8)


def s_bit(*bits: int) -> tuple[bytes, bytes]:
    return (b"sBIT", bytes(bits))


WHITES: dict[str, list[tuple[str, bytes, np.ndarray]]] = {
    "one uses the upper half": [
        ("train/a/dark.png", deep(1, 249), scaled(ramp(1, 249), 65535)),
        ("train/a/light.png", deep(2, 65535), scaled(ramp(2, 65535), 65535)),
    ],
    "one of the test images does": [
        ("train/a/dark.png", deep(1, 249), scaled(ramp(1, 249), 65535)),
        ("test/a/light.tif", tiff(ramp(2, 40000), 16, 1), scaled(ramp(2, 40000), 65535)),
    ],
    "12 bits": [
        ("train/a/dark.png", deep(1, 300, s_bit(12)), scaled(ramp(1, 300), 4095)),
        ("train/b/light.png", deep(2, 4095, s_bit(12)), scaled(ramp(2, 4095), 4095)),
    ],
    "12 bits, all dark": [("train/a/dark.png", deep(1, 300, s_bit(12)), scaled(ramp(1, 300), 4095))],
    "10 bits": [("train/a/x.png", deep(1, 1023, s_bit(10)), scaled(ramp(1, 1023), 1023))],
    "12 bits, spread over 16": [
        ("train/a/dark.png", deep(1, 300, s_bit(12)), scaled(ramp(1, 300), 65535)),
        ("train/b/light.png", deep(2, 5000, s_bit(12)), scaled(ramp(2, 5000), 65535)),
    ],
    "16 bits by its own word": [("train/a/dark.png", deep(1, 300, s_bit(16)), scaled(ramp(1, 300), 65535))],
    "12 and 14 bits": [
        ("train/a/12.png", deep(1, 4000, s_bit(12)), scaled(ramp(1, 4000), 4095)),
        ("train/a/14.png", deep(2, 16000, s_bit(14)), scaled(ramp(2, 16000), 16383)),
    ],
    "tiff of 12 bits": [("train/a/x.tif", tiff(ramp(3, 900), 12, 1), scaled(ramp(3, 900), 4095))],
    "colour": [("train/a/x.png", png(drawn(4, 3, 65535), 16, RGB), drawn(4, 3, 65535) >> 8)],
    "tiff in colour": [("train/a/x.tif", tiff(drawn(5, 3, 65535), 16, 2), drawn(5, 3, 65535) >> 8)],
    "a black glyph on nothing": [
        (
            "train/a/x.png",
            png(np.full((SIDE, SIDE, 4), [0, 0, 0, 65535]), 16, RGBA),
            np.zeros((SIDE, SIDE, 3), np.uint8),
        )
    ],
}


@pytest.mark.parametrize("case", WHITES)
def test_sixteen_bits_are_scaled_by_what_the_files_say(bnexp: Bnexp, case: str) -> None:
    make_folder()
    for name, content, _ in WHITES[case]:
        put(name, content)
    found = {split: decoded(bnexp, split=split) for split in ("train", "test")}
    names = {split: sorted(str(path) for path in Path("pictures", split).rglob("*.*")) for split in found}
    for name, _, expected in WHITES[case]:
        split = name.partition("/")[0]
        pixels = found[split][names[split].index(f"pictures/{name}")]
        assert np.array_equal(in_colour(pixels), in_colour(expected)), name


def with_alpha(samples: np.ndarray, hidden: int | None = None) -> np.ndarray:
    """Opaque, but for the first row, which is transparent and of the colour `hidden`, where that is given."""
    found = np.concatenate([samples, np.full((SIDE, SIDE, 1), 65535)], 2)
    if hidden is not None:
        found[0] = [*([hidden] * samples.shape[2]), 0]
    return found


UNKNOWN: dict[str, tuple[bytes, str]] = {
    "values to 249": (deep(1, 249), "0 to 249"),
    "a camera's 12 bits": (deep(1, 4095), "0 to 4095"),
    "half": (deep(1, 32767), "0 to 32767"),
    "tiff": (tiff(ramp(1, 1000), 16, 1), "0 to 1000"),
    "black": (deep(1, 0), "0 to 0"),
    "colour": (png(ramp(1, 1000).repeat(3, 2), 16, RGB), "0 to 768"),
    "colour of 12 bits": (png(ramp(1, 4095).repeat(3, 2), 16, RGB, s_bit(12, 12, 12)), "0 to 3840"),
    "tiff in colour": (tiff(ramp(1, 1000).repeat(3, 2), 16, 2), "0 to 768"),
    "colour under an alpha": (png(with_alpha(ramp(1, 1000).repeat(3, 2)), 16, RGBA), "0 to 768"),
    "8 bits in 16 under an alpha": (png(with_alpha(ramp(1, 249).repeat(3, 2)), 16, RGBA), "0 to 0"),
    "12 bits under an alpha": (png(with_alpha(ramp(1, 4095).repeat(3, 2)), 16, RGBA, s_bit(12, 12, 12, 16)), "to 3840"),
    "grey under an alpha": (png(with_alpha(ramp(1, 4095)), 16, GREY_ALPHA), "0 to 3840"),
    "dark beside transparent white": (png(with_alpha(ramp(1, 1000).repeat(3, 2), 65535), 16, RGBA), "to 768"),
    "white at 0": (tiff(ramp(1, 65535), 16, 0), "white at 0"),
    "32 bits": (saved(np.full((SIDE, SIDE), 70000, np.int32), "TIFF"), "32 bits"),
    "floats": (saved(np.full((SIDE, SIDE), 0.5, np.float32), "TIFF"), "floating-point"),
    "with a sign": (tiff(ramp(1, 30000), 16, 1, (339, 2)), "with a sign"),
}


def test_a_bright_picture_of_another_kind_says_nothing_of_a_dark_one(bnexp: Bnexp) -> None:
    make_folder()
    put("train/a/light.png", png(with_alpha(drawn(4, 3, 65535)), 16, RGBA))
    put("train/a/x.png", deep(1, 249))
    refused(bnexp, "pictures/train/a/x.png", "0 to 249")


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_range_without_a_white_is_refused(bnexp: Bnexp, case: str) -> None:
    make_folder()
    content, found = UNKNOWN[case]
    put("train/a/x.png", content)
    refused(bnexp, "pictures/train/a/x.png", found)


# ---- metadata, and what decoders raise


def test_eight_orientations_with_an_odd_tag_and_without(bnexp: Bnexp) -> None:
    make_folder()
    pixels = drawn(3, 3, 255).astype(np.uint8)
    smooth = (np.mgrid[:SIDE, :SIDE].transpose(1, 2, 0) @ np.array([[9, 2, 5], [3, 8, 1]]) + 40).astype(np.uint8)
    expected = {}
    for number in range(1, 9):
        for odd in (False, True):
            tags = exif(number, odd)
            files = {
                "png": (pixels, png(pixels, 8, RGB, (b"eXIf", tags))),
                "webp": (pixels, saved(pixels, "WEBP", lossless=True, exif=tags)),
                "jpg": (smooth, saved(smooth, "JPEG", quality=100, subsampling=0, exif=b"Exif\0\0" + tags)),
                "tif": (pixels, tiff(pixels, 8, 2, (274, number))),
            }
            for suffix, (shown, content) in files.items():
                name = f"{number}{'odd' if odd else ''}.{suffix}"
                put(f"train/c/{name}", content)
                expected[name] = turned(shown, number)
    for found, name in zip(decoded(bnexp)[8:], sorted(expected), strict=True):
        assert int(np.abs(found.astype(int) - expected[name]).max()) <= (4 if "jpg" in name else 0), name


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
def test_another_orientation_is_none(bnexp: Bnexp, orientation: int) -> None:
    make_folder()
    put("train/a/x.png", png(drawn(3, 3, 255), 8, RGB, (b"eXIf", exif(orientation))))
    assert np.array_equal(decoded(bnexp)[4], drawn(3, 3, 255))


@pytest.mark.parametrize(
    "error",
    [RuntimeError(""), KeyError("x"), MemoryError(), struct.error("two\nlines"), AssertionError(), OSError(5, "")],
)
def test_whatever_a_decoder_raises_names_the_file(
    bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    make_folder()
    put("train/a/x.webp", saved(drawn(3, 3, 255).astype(np.uint8), "WEBP"))
    load = Image.Image.load

    def fail(image: Image.Image) -> Any:
        if image.format == "WEBP":
            raise error
        return load(image)

    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile.load", fail)
    refused(bnexp, "pictures/train/a/x.webp")


def test_a_picture_of_many_pixels_is_read_without_a_warning(
    bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    make_folder()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE - 1)
    assert len(decoded(bnexp)) == 8
    assert not recwarn.list
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE // 2 - 1)
    shutil.rmtree("data")
    refused(bnexp, "pictures/train/a/0.png")


# ---- the table


def test_one_table_says_what_was_read_and_left_out(bnexp: Bnexp) -> None:
    make_folder(train=5)
    for name in ("deep/1.png", "deep/er/2.png", "x.PNG/3.png"):
        put(f"train/b/{name}")
    for name in ("train/a/._0.png", "train/b/deep/._1.png", "train/.DS_Store", "train/a/.cache/x.png", ".hidden/x.png"):
        put(name)
    for name in ("train/__MACOSX/a/0.png", "train/b/@eaDir/x.jpg", "test/lone.png", "train/notes.txt"):
        put(name)
    for name in ("train/a/notes.txt", "test/b/x.heic", "test/b/deep/Makefile", "test/b/x.png.bak"):
        put(name)
    for name in ("val/a/0.png", "val/a/1.png", "lone.png"):
        put(name)
    record = trained(bnexp, "dataset.validation=3")
    assert record["images"] == {
        "classes": {
            "a": {"train": 4, "validation": 1, "test": 2},
            "b": {"train": 6, "validation": 2, "test": 2},
        },
        "left_out": {
            "AppleDouble (._NAME)": 2,
            "hidden": 3,
            "beside train/ and test/": 3,
            "system (__MACOSX, @eaDir)": 2,
            "not in a class's folder": 2,
            "not named as a picture": 4,
        },
    }
    assert "images" not in record["dataset"]


def test_of_a_folder_that_is_left_out_every_file_counts(bnexp: Bnexp) -> None:
    make_folder(train=5)
    for number in range(7):
        put(f"train/a/.old/deep/{number}.png")
    record = trained(bnexp, "dataset.validation=2")
    assert record["images"]["left_out"] == {"hidden": 7}


def test_classes_whose_names_print_alike_stay_apart(bnexp: Bnexp) -> None:
    make_folder(train=5)
    for split in ("train", "test"):
        for number, name in enumerate(("x\ty", "x\\ty")):
            for place in range(3):
                put(f"{split}/{name}/{number}{place}.png")
    record = trained(bnexp, "dataset.validation=2")
    assert sorted(record["images"]["classes"]) == ["a", "b", "x\ty", "x\\ty"]


@pytest.mark.parametrize("format", ["png", "webp", "jpg"])
@pytest.mark.parametrize("tags", [b"XX*\0\x08\0\0\0", b"II*\0\x08", b"II*\0\xff\xff\xff\xff", b""])
def test_exif_that_cannot_be_read_is_no_fault_of_the_pixels(bnexp: Bnexp, format: str, tags: bytes) -> None:
    make_folder()
    pixels = np.full((SIDE, SIDE, 3), 60, np.uint8)
    pixels[: SIDE // 2] = 200
    pillow = {"webp": {"exif": tags, "lossless": True}, "jpg": {"exif": b"Exif\0\0" + tags, "quality": 100}}
    names = {"webp": "WEBP", "jpg": "JPEG"}
    content = (
        png(pixels, 8, RGB, (b"eXIf", tags)) if format == "png" else saved(pixels, names[format], **pillow[format])
    )
    put(f"train/a/z.{format}", content)
    found = decoded(bnexp)[4]
    assert np.abs(found.astype(int) - pixels).max() <= 2


def lines_of(out: str) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]


@pytest.mark.parametrize("command", ["run", "sweep", "dry_run", "fetch"])
def test_the_table_is_shown_once_a_command(bnexp: Bnexp, command: str) -> None:
    make_folder(train=5)
    put("train/a/.x.png")
    put("test/b/x.txt")
    words = (*WORDS, "dataset.validation=2")
    commands = {
        "run": (*TRAIN, *words),
        "sweep": (*TRAIN, "-m", *words, "seed=0,1", "optim.lr=0.1,0.2", "executor.workers=1"),
        "dry_run": (*TRAIN, *words, "dry_run=true"),
        "fetch": ("data", "fetch", *words),
    }
    outcome = bnexp(*commands[command])
    assert (outcome.status, outcome.err) == (0, "")
    lines = lines_of(outcome.out)
    for row in (["a", "4", "1", "2"], ["b", "4", "1", "2"], ["all 2 classes", "8", "2", "4"]):
        assert lines.count(row) == 1, outcome.out
    assert (
        lines.count(["left out: hidden", "1", "0"]) == lines.count(["left out: not named as a picture", "0", "1"]) == 1
    )


def test_a_sweep_over_two_folders_shows_both(bnexp: Bnexp) -> None:
    make_folder(train=5)
    words = [word for word in WORDS if "size" not in word]
    outcome = bnexp(*TRAIN, "-m", *words, ONE, "dataset.size=4,8", "executor.workers=1")
    assert outcome.status == 0, outcome.err
    assert lines_of(outcome.out).count(["all 2 classes", "9", "1", "4"]) == 2


def test_hundreds_of_classes_are_in_the_record_alone(bnexp: Bnexp) -> None:
    for number in range(130):
        put(f"train/{number:03}/x.png")
        put(f"train/{number:03}/y.png")
    put("test/000/x.png")
    record = trained(bnexp, ONE)
    assert len(record["images"]["classes"]) == 130
    data._loaded.clear()
    lines = lines_of(fetch(bnexp).out)
    assert len([line for line in lines if line[0].isdigit()]) == 100
    assert ["… 30 more, all of them in run.json"] in lines


@pytest.mark.parametrize("name", [b"caf\xe9", "a\u202eb".encode(), b"tab\there"])
def test_a_class_of_any_name_is_recorded(bnexp: Bnexp, name: bytes) -> None:
    make_folder()
    os.rename(b"pictures/train/b", b"pictures/train/" + name)
    os.rename(b"pictures/test/b", b"pictures/test/" + name)
    assert len(trained(bnexp, ONE)["images"]["classes"]) == 2


def test_other_data_sets_have_no_table(bnexp: Bnexp) -> None:
    outcome = bnexp(*TRAIN, "dataset=digits", "hydra.run.dir=run")
    assert "images of" not in outcome.out
    assert "images" not in json.loads(Path("run/run.json").read_text())


# ---- classes and the split


@pytest.mark.parametrize("left", ["nothing", "another suffix", "hidden", "an empty folder", "an AppleDouble"])
def test_a_class_without_images_is_refused_by_name(bnexp: Bnexp, left: str) -> None:
    make_folder()
    Path("pictures/train/empty").mkdir()
    names = {"another suffix": "x.heic", "hidden": ".x.png", "an empty folder": "deep/.x", "an AppleDouble": "._x.png"}
    if left in names:
        put(f"train/empty/{names[left]}")
    refused(bnexp, "pictures/train/empty", *(["left out: 1 "] if left in names else []))


@pytest.mark.parametrize("words", ["dataset.validation=7", "dataset.limit=1", "dataset.limit=2"])
def test_a_class_without_one_to_train_on_is_refused_by_name(bnexp: Bnexp, words: str) -> None:
    make_folder(train=4)
    put("train/rare/only.png")
    put("test/rare/only.png")
    line = refused(bnexp, words, words=(words,))
    assert re.search(r"class (a|b|rare) ", line)


@pytest.mark.parametrize("sizes", [(100, 100, 100), (200, 90, 10), (60, 3, 1), (97, 53, 31)])
def test_every_part_of_the_split_has_its_share_of_each_class(bnexp: Bnexp, sizes: tuple[int, ...]) -> None:
    for number, size in enumerate(sizes):
        for index in range(size):
            put(f"train/{number}/{index}.png", shade=index)
    for number in range(len(sizes)):
        put(f"test/{number}/x.png")
    total = sum(sizes)
    for validation, limit in ((5, total // 2), (total // 5, 40), (total // 3, 40)):
        counts = trained(bnexp, f"dataset.validation={validation}", f"dataset.limit={limit}")["images"]["classes"]
        for number, size in enumerate(sizes):
            held, kept = counts[str(number)]["validation"], counts[str(number)]["train"]
            assert abs(held - validation * size / total) <= 1
            assert abs(held + kept - (validation + limit) * size / total) <= 1


def test_the_split_is_fixed_and_shuffled(bnexp: Bnexp) -> None:
    for name in ("train/a", "train/b", "test/a", "test/b"):
        for index in range(40):
            put(f"{name}/{index:02}.png", shade=index)
    record = trained(bnexp, "dataset.validation=20")
    assert trained(bnexp, "dataset.validation=20", "seed=5")["dataset"] == record["dataset"]
    config = data.DatasetConfig("image_folder", root="data", path="pictures", size=SIDE, validation=20)
    held, kept = data.load_data(config).validation, data.load_data(config).train
    assert sorted(Counter(held.labels.tolist()).values()) == [10, 10]
    for images in (held, kept):
        shades = images.pixels[images.labels == 0][:, 0, 0, 0].tolist()
        assert shades != sorted(shades)
    everything = held.pixels[:, 0, 0, 0].tolist() + kept.pixels[:, 0, 0, 0].tolist()
    assert sorted(everything) == sorted([*range(40)] * 2)


# ---- the cache


def replace_in_place(path: Path) -> None:
    before = path.stat()
    path.write_bytes(other_picture(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_by_rename(path: Path) -> None:
    before = path.stat()
    path.with_suffix(".new").write_bytes(other_picture(before.st_size))
    os.utime(path.with_suffix(".new"), ns=(before.st_atime_ns, before.st_mtime_ns))
    path.with_suffix(".new").replace(path)


def replace_by_copy(path: Path) -> None:
    before = path.stat()
    Path("new.png").write_bytes(other_picture(before.st_size))
    os.utime("new.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    shutil.copy2("new.png", path)


def swap(path: Path) -> None:
    other = path.with_name("1.png")
    for file in (path, other):
        os.utime(file, ns=(1, 1))
    path.rename("between")
    other.rename(path)
    Path("between").rename(other)


def swap_contents(path: Path) -> None:
    other = path.with_name("1.png")
    for file, content in ((path, other.read_bytes()), (other, path.read_bytes())):
        before = file.stat()
        file.write_bytes(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_target(path: Path) -> None:
    """Behind a link that stays."""
    replace_in_place(path.with_name("linked.png"))


def move_to_another_class(path: Path) -> None:
    path.rename("pictures/train/b/9.png")


def plain(shade: int, size: int = 200) -> bytes:
    """A picture in so many bytes."""
    pixels, bare = np.full((SIDE, SIDE, 1), shade), len(png(np.full((SIDE, SIDE, 1), shade), 8, GREY))
    return png(pixels, 8, GREY, (b"teST", bytes(size - bare - 12)))


def other_picture(size: int) -> bytes:
    return plain(222, size)


REPLACEMENTS = [replace_in_place, replace_by_rename, replace_by_copy, swap, swap_contents, replace_target]
REPLACEMENTS += [move_to_another_class]


def of_the_content(path: str, status: os.stat_result) -> image_folder.File:
    """As FAT and SSHFS have it: no time of change but the content's, and numbers of inodes that say nothing."""
    return image_folder.File(path, status.st_size, status.st_mtime_ns, status.st_mtime_ns, 0)


def in_seconds(path: str, status: os.stat_result) -> image_folder.File:
    """As an ext3 has it, within a second."""
    return image_folder.File(path, status.st_size, status.st_mtime_ns // 10**9 * 10**9, 10**9, 0)


@pytest.mark.parametrize("state", [of_the_content, in_seconds])
@pytest.mark.parametrize("replace", [*REPLACEMENTS])
def test_where_times_do_not_tell_contents_do(
    bnexp: Bnexp,
    monkeypatch: pytest.MonkeyPatch,
    replace: Callable[[Path], None],
    state: Callable[[str, os.stat_result], image_folder.File],
) -> None:
    monkeypatch.setattr(image_folder, "file_of", state)
    test_every_replacement_is_seen(bnexp, replace)


@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_every_replacement_is_seen(bnexp: Bnexp, replace: Callable[[Path], None]) -> None:
    for name, shade in product(("train/a", "train/b", "test/a", "test/b"), range(4)):
        put(f"{name}/{shade}.png", plain(shade))
    Path("pictures/train/a/2.png").rename("pictures/train/a/linked.png")
    Path("pictures/train/a/2.png").symlink_to("linked.png")
    before = trained(bnexp, ONE)["dataset"]
    replace(Path("pictures/train/a/0.png"))
    after = trained(bnexp, ONE)["dataset"]
    shutil.rmtree("data")
    assert after == trained(bnexp, ONE)["dataset"] != before


def caches() -> list[Path]:
    return sorted(Path("data/cache").glob("*.safetensors"))


def test_a_cache_is_used_again_and_each_decoder_has_its_own(
    bnexp: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder()
    fetch(bnexp)
    before = caches()[0].stat()
    decode = decoding.decode
    monkeypatch.setattr(decoding, "decode", None)  # which would fail
    assert fetch(bnexp).status == 0
    assert [path.stat() for path in caches()] == [before]
    monkeypatch.setattr(decoding, "decode", decode)
    (tmp_path / "decoding.py").write_text(Path(decoding.__file__).read_text() + "\n")
    for number, (place, value) in enumerate(
        [
            ("PIL.__version__", "1"),
            ("PIL.features.version", lambda name: name),
            ("bnexp.data.decoding.__file__", str(tmp_path / "decoding.py")),
        ]
    ):
        monkeypatch.setattr(place, value)
        assert fetch(bnexp).status == 0
        assert len(caches()) == number + 2
    for words in ("dataset.size=4", "dataset.background=grey"):
        assert fetch(bnexp, words).status == 0
    assert len(caches()) == 6
    assert fetch(bnexp, "dataset.validation=2").status == 0
    assert len(caches()) == 6


def file_for_a_folder() -> None:
    Path("data").mkdir()
    Path("data/cache").write_text("not a folder")


def root_is_a_file() -> None:
    Path("data").write_text("not a folder")


def within_folder_for_the_file() -> None:
    whole = cached()
    whole.unlink()
    whole.mkdir()


def within_folder_for_the_digest() -> None:
    digest = cached().with_name(cached().name + ".sha256")
    digest.unlink()
    digest.mkdir()


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def within_pipe_for_the_file() -> None:
    as_pipe(cached())


def within_pipe_for_the_digest() -> None:
    as_pipe(cached().with_name(cached().name + ".sha256"))


def within_device_for_the_file() -> None:
    path = cached()
    path.unlink()
    path.symlink_to("/dev/zero")


def links_to_itself() -> None:
    Path("data").mkdir()
    Path("data/cache").symlink_to("cache")


@pytest.mark.parametrize(
    "spoil",
    [
        file_for_a_folder,
        root_is_a_file,
        within_folder_for_the_file,
        within_folder_for_the_digest,
        within_pipe_for_the_file,
        within_pipe_for_the_digest,
        within_device_for_the_file,
        links_to_itself,
    ],
)
def test_a_cache_that_cannot_be_used_is_done_without(bnexp: Bnexp, spoil: Callable[[], None]) -> None:
    make_folder()
    expected = trained(bnexp, ONE)["dataset"]
    if not spoil.__name__.startswith("within"):
        shutil.rmtree("data")
    spoil()
    data._loaded.clear()
    outcome = bnexp(*TRAIN, "-m", *WORDS, ONE, "seed=0,1", "executor.workers=1", "hydra.sweep.dir=sweep")
    assert outcome.status == 0
    assert outcome.err.count("\n") == 1
    assert "data" in outcome.err
    for path in Path("sweep").rglob("run.json"):
        assert json.loads(path.read_text())["dataset"] == expected


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_takes_no_cache_is_done_without(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    make_folder()

    def fail(handle: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", fail)
    outcome = fetch(bnexp)
    assert outcome.status == 0
    assert outcome.err.count("\n") == 1
    assert os.strerror(error) in outcome.err
    assert not [*Path("data/cache").iterdir()]


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read and write every folder")
@pytest.mark.parametrize("mode", [0o555, 0])
def test_a_cache_of_somebody_else_is_done_without(bnexp: Bnexp, mode: int) -> None:
    make_folder()
    fetch(bnexp)
    put("train/a/new.png")
    Path("data/cache").chmod(mode)
    outcome = fetch(bnexp)
    Path("data/cache").chmod(0o755)
    assert (outcome.status, outcome.err.count("\n")) == (0, 1)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "digest", "no digest", "another's", "other type"])
def test_a_damaged_cache_is_made_anew(bnexp: Bnexp, damage: str) -> None:
    make_folder()
    fetch(bnexp)
    path, digest = cached(), cached().with_name(cached().name + ".sha256")
    whole = path.read_bytes()
    if damage in ("flip", "truncate", "empty"):
        path.write_bytes({"flip": whole[:-1] + bytes([whole[-1] ^ 1]), "truncate": whole[:-9], "empty": b""}[damage])
    elif damage == "digest":
        digest.write_text("")
    elif damage == "no digest":
        digest.unlink()
    else:
        shape, kind = ((8, 1, SIDE, SIDE), np.int8) if damage == "other type" else ((3, 1, SIDE, SIDE), np.uint8)
        save_file({split: np.zeros(shape, kind) for split in ("train", "test")}, path)
        digest.write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    outcome = fetch(bnexp)
    assert outcome.status == 0
    assert outcome.err.count("\n") == (damage != "no digest")
    assert path.read_bytes() == whole
    assert fetch(bnexp).err == ""


# ---- runs


def test_an_interrupted_run_goes_on_with_its_table_and_not_with_other_pictures(bnexp: Bnexp) -> None:
    make_folder()
    record = trained(bnexp, ONE)
    curve = Path("run/metrics.csv").read_bytes()
    Path("run/summary.json").unlink()
    data._loaded.clear()
    outcome = bnexp("resume", "run")
    assert (outcome.status, outcome.err) == (0, "")
    assert lines_of(outcome.out).count(["all 2 classes", "7", "1", "4"]) == 1
    assert Path("run/metrics.csv").read_bytes() == curve
    assert json.loads(Path("run/run.json").read_text())["images"] == record["images"]
    Path("run/summary.json").unlink()
    put("train/a/0.png", shade=99)
    data._loaded.clear()
    assert bnexp("resume", "run").status == 2


def test_status_of_a_folder(bnexp: Bnexp) -> None:
    make_folder()
    assert "ready" in bnexp("data", "status", *WORDS).out
    Path("pictures/train/c").mkdir()
    assert "without images" in " ".join(bnexp("data", "status", *WORDS).out.split())
