"""Damaged pictures and odd folders, many times over: each is refused by name, or read as it is.

`make test` does a twentieth of it; `make test-faults` all of it (--faults=1).
"""

import io
import json
import os
import random
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import Bnexp, Outcome, Tell, Times
from pictures import (
    GREY,
    RGB,
    RGBA,
    SIDE,
    TRANSPARENT,
    bmp,
    drawn,
    exif,
    over,
    png,
    png_chunk,
    saved,
    tiff,
    turned,
)
from PIL import Image
from safetensors.numpy import load_file
from test_image_folder import ONE, TRAIN, TRAPS, WORDS, in_colour, make_folder, patience, put

from bnexp.data import load as data

pytestmark = pytest.mark.faults
__all__ = ["patience"]  # a fixture

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
KEPT = 220  # bytes from the start, in which headers and EXIF are


def seeds() -> dict[str, bytes]:
    """A picture of each kind, with EXIF where it has a place for it."""
    grey, colour, clear = (drawn(seed, channels, 255) for seed, channels in ((1, 1), (2, 3), (3, 4)))
    eight = colour.astype(np.uint8)
    tags = exif(6, odd=True)
    palette = Image.fromarray(eight).quantize(16)
    gif, tabled = io.BytesIO(), io.BytesIO()
    palette.save(gif, "GIF", transparency=2)
    palette.save(tabled, "PNG", transparency=bytes(range(0, 160, 10)), exif=tags)
    return {
        "png grey": png(grey, 8, GREY, (b"eXIf", tags)),
        "png colour": png(colour, 8, RGB, (b"sBIT", b"\x05\x06\x05"), (b"eXIf", tags)),
        "png alpha": png(clear, 8, RGBA, (b"eXIf", exif(3))),
        "png deep": png(drawn(4, 1, 65535), 16, GREY, (b"eXIf", exif(8))),
        "png palette": tabled.getvalue(),
        "jpeg": saved(eight, "JPEG", exif=b"Exif\0\0" + tags),
        "jpeg grey": saved(grey[..., 0].astype(np.uint8), "JPEG", exif=b"Exif\0\0" + exif(5)),
        "webp": saved(eight, "WEBP", exif=tags),
        "webp lossless": saved(clear.astype(np.uint8), "WEBP", lossless=True, exif=exif(7)),
        "bmp": saved(eight, "BMP"),
        "bmp alpha": bmp(clear),
        "gif": gif.getvalue(),
        "tiff": tiff(colour, 8, 2, (274, 6)),
        "tiff packed": saved(eight, "TIFF", compression="tiff_lzw"),
        "tiff deep": tiff(drawn(5, 1, 65535), 16, 1, (274, 2)),
    }


def mutated(chance: random.Random, content: bytes) -> bytes:
    """With one to four changes in its header or its EXIF; of a PNG mostly with the CRCs that go with it."""
    whole = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        places = [range(min(KEPT, len(whole)))]
        found = max(whole.find(b"II*\0"), 0)
        places += [range(found, min(found + 60, len(whole)))] if found else []
        if chance.random() < 0.1:
            places = [range(len(whole))]
        place = chance.choice(chance.choice(places))
        change = chance.random()
        if change < 0.7:
            whole[place] = chance.choice([0, 1, 255, whole[place] ^ (1 << chance.randrange(8)), chance.randrange(256)])
        elif change < 0.8:
            number = chance.choice([0, 2**31, 2**32 - 1, 70_000])
            whole[place : place + 4] = number.to_bytes(4, chance.choice(("big", "little")))
        elif change < 0.9:
            del whole[place : place + chance.randint(1, 9)]
        else:
            whole[place:place] = chance.randbytes(chance.randint(1, 9))
        if not whole:
            break
    return with_crcs(bytes(whole)) if content[:4] == b"\x89PNG" and chance.random() < 0.8 else bytes(whole)


def with_crcs(content: bytes) -> bytes:
    parts, place = [content[:8]], 8
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        if place + 12 + length > len(content):
            break
        parts.append(png_chunk(content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    return b"".join(parts) + content[place:]


def by_pillow(content: bytes) -> np.ndarray | None:
    """What Pillow shows of it over white, (SIDE, SIDE, 3), or None where it can't; of 16 bits, 65535 as white."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
            image.load()
            orientation = 1
            with suppress(Exception):  # of EXIF that can't be read
                orientation = image.getexif().get(0x112, 1)
            if image.format == "PNG" and image.mode == "L" and "transparency" in image.info:
                top = 2 ** content[24] - 1  # by the depth in the header: the key is in units of the file
                image.info["transparency"] = (image.info["transparency"] & top) * 255 // top
            if image.mode.startswith("I;16"):
                image = Image.fromarray(((np.asarray(image).astype(int) * 255 + 32767) // 65535).astype(np.uint8))
            elif image.mode in ("I", "F"):
                return None
            rgba = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
            shown = over(rgba[..., :3], rgba[..., 3], 255) if rgba.shape[-1] == 4 else rgba
            shown = turned(shown, orientation) if orientation in range(1, 9) else shown
            image = Image.fromarray(np.ascontiguousarray(shown))
            return np.asarray(image if image.size == (SIDE, SIDE) else image.resize((SIDE, SIDE), 2))
        except Exception:
            return None


@contextmanager
def nothing_beside() -> Iterator[None]:
    """Nor do libraries write to the screen beside Python."""
    kept = os.dup(2)
    with open("beside", "wb") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert Path("beside").read_bytes() == b""


def fetch(bnexp: Bnexp) -> Outcome:
    data._loaded.clear()
    shutil.rmtree("data", ignore_errors=True)
    return bnexp("data", "fetch", *WORDS, ONE)


def test_mutations_of_headers_and_exif(bnexp: Bnexp, times: Times, tell: Tell) -> None:
    make_folder(train=1, test=1)
    put("train/b/1.png", shade=9)
    chance, ends, originals, count = random.Random(0), Counter[str](), seeds(), times(2000)
    for number in range(count):
        signal.alarm(60)  # for each one: nothing hangs
        name = chance.choice([*originals])
        content = mutated(chance, originals[name])
        path = put("train/a/x.png", content)
        with nothing_beside():
            outcome = fetch(bnexp)
        expected = by_pillow(content)
        assert "Traceback" not in outcome.err
        if outcome.status == 0:
            [cache] = Path("data/cache").glob("*.safetensors")
            pixels = load_file(cache)["train"][1].transpose(1, 2, 0)
            assert expected is not None, (number, name)
            assert np.array_equal(in_colour(pixels), expected), (number, name)
            ends["read"] += 1
        else:
            assert outcome.status == 2, (number, name, outcome)
            assert outcome.err.count("\n") == 1
            assert str(path) in outcome.err, (number, name, outcome)
            assert expected is None or "16 bits" in outcome.err or "16-bit" in outcome.err, (number, name, outcome)
            ends["refused"] += 1
    tell(
        f"{count} mutations of headers and EXIF of PNG, JPEG, WebP, BMP, GIF and TIFF: {ends['refused']} refused by "
        f"name, {ends['read']} read with the pixels that another decoding shows; no crash, no hang, no warning"
    )
    assert ends["read"] >= count / 5
    assert ends["refused"] >= count / 5


# ---- folders


REASONS = {
    ".hidden.png": "hidden",
    ".cache/x.png": "hidden",
    "._000.png": "AppleDouble (._NAME)",
    "__MACOSX/x.png": "system (__MACOSX, @eaDir)",
    "@eaDir/x.jpg": "system (__MACOSX, @eaDir)",
    "notes.txt": "not named as a picture",
    "deep/x.heic": "not named as a picture",
    "Makefile": "not named as a picture",
}


def draw_class(chance: random.Random, place: str, left_out: Counter[str], least: int) -> int:
    """A class's folder with pictures, some of them in folders below or links, and with what isn't read; how many of
    them are.
    """
    count = chance.randint(least, 9)
    for number in range(count):
        below = chance.choice(["", "", "deep/", "deep/er/", "x.png/"])
        kind, name = chance.random(), f"{place}/{below}{number}"
        if kind < 0.2:
            put(f"../elsewhere/{place}/{number}.png")
            path = Path("pictures", f"{name}.bmp")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(Path(f"elsewhere/{place}/{number}.png").absolute())
        elif kind < 0.5:
            make = TRANSPARENT[chance.choice([key for key in TRANSPARENT if "16" not in key])]
            put(f"{name}.{chance.choice(['png', 'PNG', 'webp', 'tif'])}", make(255)[0])
        else:
            put(f"{name}.png", shade=number)
    for name in chance.sample([*REASONS], chance.randint(0, len(REASONS))):
        put(f"{place}/{name}")
        left_out[REASONS[name]] += 1
    return count


def test_drawn_folders(bnexp: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: Times, tell: Tell) -> None:
    """Each has the table that was drawn; a pipe, device, socket or looping link anywhere in it is named."""
    chance, count, trapped = random.Random(1), times(100), 0
    for number in range(count):
        signal.alarm(60)
        folder = tmp_path / str(number)
        folder.mkdir()
        monkeypatch.chdir(folder)
        left_out = Counter[str]()
        names = [f"{chance.choice('äbç x')}{index}" for index in range(chance.randint(2, 5))]
        train = {name: draw_class(chance, f"train/{name}", left_out, 2) for name in names}
        test = {name: draw_class(chance, f"test/{name}", left_out, 1) for name in names}
        for place in chance.sample(["train/lone.png", "test/notes.txt"], chance.randint(0, 2)):
            put(place)
            left_out["not in a class's folder"] += 1
        data._loaded.clear()
        words = ("hydra.run.dir=run", f"dataset.validation={len(names)}")
        if chance.random() < 0.3:
            trap, place = chance.choice([trap for trap in TRAPS if trap != "class"]), chance.choice(names)
            Path("pictures/train/a").mkdir(exist_ok=True)  # to which some of them lead
            Path("pictures/train/b").mkdir(exist_ok=True)
            put("train/a/x.png")
            put("train/b/x.png")
            TRAPS[trap](Path("pictures/train", place, "trap.png"))
            outcome = bnexp(*TRAIN, *WORDS, *words)
            assert (outcome.status, outcome.err.count("\n")) == (2, 1), (number, trap, outcome)
            assert f"pictures/train/{place}/" in outcome.err, (number, trap, outcome)
            trapped += 1
            continue
        outcome = bnexp(*TRAIN, *WORDS, *words)
        assert (outcome.status, outcome.err) == (0, ""), (number, outcome)
        images = json.loads(Path("run/run.json").read_text())["images"]
        assert images["left_out"] == dict(left_out), number
        assert {name: found["train"] + found["validation"] for name, found in images["classes"].items()} == train
        assert {name: found["test"] for name, found in images["classes"].items()} == test
    tell(
        f"{count} drawn folders of hidden, nested, linked, transparent and odd files: {count - trapped} have the table "
        f"that was drawn, {trapped} with a pipe, device, socket or looping link are refused by its name"
    )
