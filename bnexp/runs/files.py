"""Read and write files so that a killed process or a power cut leaves them whole, where the file system can."""

import errno
import json
import math
import multiprocessing
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from bnexp.runs.config import LARGEST
from bnexp.runs.console import print_error

LONGEST_NAME = 200  # bytes of a directory's name that is made of overrides; file systems allow 255
# Errors of file systems that lack an operation (SMB, FUSE, …); a disk that is full or broken has others.
UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM}
UNOPENED = UNSUPPORTED | {errno.EACCES, errno.EBADF, errno.EISDIR}  # errors of opening a directory to flush it

_reported = False  # whether it was printed that files can't be flushed


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a path for a new file; after the `with` body, flush this file to the disk and replace `path` by it.

    Even after a power cut, a reader sees the old file or the new one, never a part of one. Where the body fails, `path`
    stays as it was. An OSError, also one of the body, is raised with this path.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with naming(path):
            beside.unlink(missing_ok=True)  # left by a killed process of the same number
            yield beside
            sync(beside)
            beside.replace(path)
            sync(path.parent)
    finally:
        with suppress(OSError):  # the first error is the one to raise
            beside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Replace a file by one with this text in UTF-8, as `replaced` does. Raises OSError where it can't be written."""
    with replaced(path) as beside:
        # JSON, too, escapes a file's name that is in no encoding
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises OSError where it cannot be read, and ValueError where it is not valid JSON or has an integer beyond int64,
    NaN or an infinity, which no record has.
    """
    try:
        return json.loads(read_regular(path), parse_int=whole, parse_float=finite, parse_constant=finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_regular(path: Path) -> bytes:
    """Return the content of a file. Raises OSError where it can't be read or is not a regular file."""
    with open_regular(path) as file:
        return file.read()


def open_regular(path: str | Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises OSError where it can't be opened, and, without waiting, for a named pipe or a device, which might never end.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return file


def whole(digits: str) -> int:
    """Convert the digits of an integer in JSON. Raises ValueError where an int64 can't hold it."""
    if len(digits) > 20 or abs(int(digits)) > LARGEST:
        raise ValueError(f"{digits[:20]}… is too large a number")
    return int(digits)


def finite(digits: str) -> float:
    """Convert the text of a number in JSON. Raises ValueError for NaN and infinities."""
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is not a finite number")
    return number


def reason(error: Exception) -> str:
    """Return an error in a few words: the file and the system's message, if it has both, else the error's own text."""
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)


def is_name(text: str) -> bool:
    """Return whether a text that consists of overrides can be a directory's name.

    It must not be empty, begin with a dot, contain a slash, a quote or a null character, or be longer than LONGEST_NAME
    bytes.
    """
    if text[:1] in ("", ".") or not {"/", "'", '"', "\0"}.isdisjoint(text):
        return False
    try:
        return len(os.fsencode(text)) <= LONGEST_NAME
    except UnicodeEncodeError:  # half of a character, from a damaged record
        return False


def is_utf8(path: Path) -> bool:
    """Return whether the bytes of a path are valid UTF-8, which TensorBoard needs."""
    try:
        return os.fsencode(path) == str(path).encode()
    except UnicodeEncodeError:
        return False


def clear_parts(directory: Path) -> None:
    """Remove the half-written files that `replaced` left in a directory, unless their processes are still running."""
    for path in directory.glob("*.part"):
        owner = path.name.split(".")[-2]
        if not (owner.isdigit() and is_running(int(owner))):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file that is no longer needed. Errors are ignored: SMB, for example, can't remove an open file."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Return whether a process with this id is running."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # another user's
    return True


def sync(path: Path) -> None:
    """Flush a file's content, or a directory's entries, to the disk, where the file system can.

    Raises OSError for any other error, as of a broken disk.
    """
    if path.is_dir():
        with optional(path, UNOPENED):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    else:
        with path.open("r+b") as file:  # for writing, without which some file systems flush nothing
            flush(file.fileno(), path.parent)


def flush(handle: int, directory: Path) -> None:
    """Flush an open file to the disk, where the file system can. handle: its descriptor. directory: for the message."""
    with optional(directory, UNSUPPORTED):
        os.fsync(handle)


@contextmanager
def optional(directory: Path, codes: set[int]) -> Iterator[None]:
    """Suppress OSErrors with these codes in the `with` body, since flushing only protects files from a power cut.

    The first of a process, unless it is a worker, is printed with the directory.
    """
    global _reported  # noqa: PLW0603 - once a process
    try:
        yield
    except OSError as error:
        if error.errno not in codes:
            raise
        if not _reported and multiprocessing.parent_process() is None:
            _reported = True
            reason = f"files cannot be flushed to the disk there ({error.strerror}), a power cut may damage them"
            print_error(f"{directory}: {reason}")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add a path to an OSError raised in the `with` body: errors of writing and flushing have none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def shortest(path: Path) -> Path:
    """Return a path relative to the working directory if it is this or below it, else the path unchanged."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
