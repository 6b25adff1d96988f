"""Files that a killed process or a power cut leaves whole, as far as the file system can."""

import errno
import json
import math
import multiprocessing
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bnexp.console import complain

LARGEST = 2**63 - 1  # of whole numbers: what an int64 holds
LONGEST_NAME = 200  # bytes of a name that is made of a run's words; file systems allow 255
# A file system that lacks an operation answers so (SMB, FUSE, …); a disk that is full or broken never does.
UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM}
FLUSHING = "flushing files to the disk"
UNOPENED = UNSUPPORTED | {errno.EACCES, errno.EBADF, errno.EISDIR}  # a directory, to be flushed

_told: set[str] = set()  # what was said to be unsupported, once a process


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file beside, to be written: then it is flushed to the disk and takes the place of `path`. A reader sees the old
    file or the new one, never half of one, after a power cut as well. Its permissions are those of a new file: what
    the umask, or the directory's own rules, leave.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with naming(path):
            mode = create(beside)
            yield beside
            restore_mode(beside, mode)
            sync(beside)
            beside.replace(path)
            sync(path.parent)
    finally:
        with suppress(OSError):  # what failed first is what to tell
            beside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """A text in the place of what was there."""
    with replaced(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")  # a name in no encoding, escaped in JSON


def create(path: Path) -> int:
    """An empty file as any program makes one; its permissions."""
    path.unlink(missing_ok=True)  # of a process of the same number, which was killed
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def restore_mode(path: Path, mode: int) -> None:
    """Whoever wrote the file may have put a private one in its place, as safetensors does."""
    if stat.S_IMODE(path.stat().st_mode) != mode:
        with optional("setting permissions", path.parent, UNSUPPORTED):
            path.chmod(mode)


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
            remove(path)


def remove(path: Path) -> None:
    """What is of no use any more, where the file system lets go of it: one on SMB keeps what somebody has open."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # somebody else's
    return True


def sync(path: Path) -> None:
    """Flush a file, or what a directory lists, to the disk, where the file system can."""
    is_directory, handle = path.is_dir(), None
    place = path if is_directory else path.parent
    with optional(FLUSHING, place, UNOPENED if is_directory else set()):
        handle = os.open(path, os.O_RDONLY)
    if handle is None:
        return
    try:
        flush(handle, place)
    finally:
        os.close(handle)


def flush(handle: int, directory: Path) -> None:
    """Flush what was written to an open file of a directory to the disk, where the file system can."""
    with optional(FLUSHING, directory, UNSUPPORTED):
        os.fsync(handle)


@contextmanager
def optional(operation: str, directory: Path, codes: set[int]) -> Iterator[None]:
    """An operation that protects files and isn't needed to write them: with one of these error codes it is done
    without, and once a command a line says so.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in codes:
            raise
        if operation not in _told and multiprocessing.parent_process() is None:
            _told.add(operation)
            complain(f"{directory}: {operation} is not supported there ({error.strerror}), which is done without")


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
