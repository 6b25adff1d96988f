"""Reading and writing files such that a killed process or a power cut leaves them whole, where the file system can."""

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
# A file system that lacks an operation answers so (SMB, FUSE, …); a disk that is full or broken never does.
UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM}
UNOPENED = UNSUPPORTED | {errno.EACCES, errno.EBADF, errno.EISDIR}  # of a directory

_reported = False  # that files can't be flushed


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Write the file whose path this yields: it is flushed to the disk and then replaces `path`. A reader sees the old
    file or the new one, never half of one, even after a power cut. Its permissions are those of any new file there.
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
    """Replace a file by one with this text."""
    with replaced(path) as beside:
        # JSON, too, escapes a file's name that is in no encoding
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises OSError where it cannot be read, and ValueError where it is no JSON or has a number that
    no record has: an integer past int64, NaN or infinity.
    """
    try:
        return json.loads(read_regular(path), parse_int=whole, parse_float=finite, parse_constant=finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_regular(path: Path) -> bytes:
    """Read a whole file that `open_regular` can open. Raises OSError."""
    with open_regular(path) as file:
        return file.read()


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file that somebody else may have put there. Raises OSError, without waiting, where it is a named pipe or a
    device, which might never end.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return file


def whole(digits: str) -> int:
    """An integer of JSON. Raises ValueError where an int64 can't hold it."""
    if len(digits) > 20 or abs(int(digits)) > LARGEST:
        raise ValueError(f"{digits[:20]}… is too large a number")
    return int(digits)


def finite(digits: str) -> float:
    """A number of JSON. Raises ValueError for NaN and infinity."""
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is not a finite number")
    return number


def is_name(text: str) -> bool:
    """Whether a directory that is named after overrides may have this name: no path, nothing quoted or hidden."""
    if text[:1] in ("", ".") or not {"/", "'", '"', "\0"}.isdisjoint(text):
        return False
    try:
        return len(os.fsencode(text)) <= LONGEST_NAME
    except UnicodeEncodeError:  # half of a character, from a damaged record
        return False


def is_utf8(path: Path) -> bool:
    """Whether a path's bytes are UTF-8, which TensorBoard takes them for."""
    try:
        return os.fsencode(path) == str(path).encode()
    except UnicodeEncodeError:
        return False


def clear_parts(directory: Path) -> None:
    """Remove files that `replaced` left in a directory when its process was killed."""
    for path in directory.glob("*.part"):
        owner = path.name.split(".")[-2]
        if not (owner.isdigit() and is_running(int(owner))):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file that nobody needs, where the file system allows it: SMB keeps a file that is open somewhere."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def is_running(pid: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # another user's
    return True


def sync(path: Path) -> None:
    """Flush a file, or the list of a directory's files, to the disk, where the file system can."""
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
    """Flush an open file of a directory, by its descriptor, to the disk, where the file system can."""
    with optional(directory, UNSUPPORTED):
        os.fsync(handle)


@contextmanager
def optional(directory: Path, codes: set[int]) -> Iterator[None]:
    """Ignore that a flush fails with one of these error codes, since it only protects files from a power cut. Once a
    process, a line says so.
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
    """Add a path to an OSError: that of a write or a flush names none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def shortest(path: Path) -> Path:
    """A path relative to the working directory, where it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
