"""Files that a killed process or a power cut leaves whole."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LARGEST = 2**63 - 1  # of whole numbers: what an int64 holds
LONGEST_NAME = 200  # bytes of a name that is made of a run's words; file systems allow 255


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file beside, to be written: then it is flushed to the disk and takes the place of `path`. A reader sees the old
    file or the new one, never half of one, after a power cut as well.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with naming(path):
            yield beside
            beside.chmod(0o644)  # safetensors makes it private; runs and caches are for sharing
            sync(beside)
            beside.replace(path)
            sync(path.parent)
    finally:
        with suppress(OSError):  # what failed first is what to tell
            beside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """A text in the place of what was there."""
    with replaced(path) as beside:
        beside.write_text(text)


def read_json(path: Path) -> Any:
    """What a JSON file of ours holds. Raises OSError where it cannot be read and ValueError where it is no JSON, or has
    a number that no record has: one past an int64, NaN or infinity.
    """
    try:
        return json.loads(path.read_bytes(), parse_int=whole, parse_float=finite, parse_constant=finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def whole(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) > LARGEST:
        raise ValueError(f"{digits[:20]}… is too large a number")
    return int(digits)


def finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is not a finite number")
    return number


def is_name(text: str) -> bool:
    """Whether a directory may be called so that is named after a run's overrides: no path, nothing quoted or hidden."""
    return text[:1] not in ("", ".") and {"/", "'", '"'}.isdisjoint(text) and len(os.fsencode(text)) <= LONGEST_NAME


def clear_parts(directory: Path) -> None:
    """What processes that are gone were writing."""
    for path in directory.glob("*.part"):
        owner = path.name.split(".")[-2]
        if not (owner.isdigit() and is_running(int(owner))):
            path.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # somebody else's
    return True


def sync(path: Path) -> None:
    """Flush a file, or what a directory lists, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the system names this path: of a write or a flush it would name none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def shortest(path: Path) -> Path:
    """As it is seen from here, where it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
