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
from typing import Any, BinaryIO

from bnexp.console import print_error

LARGEST = 2**63 - 1  # of whole numbers: what an int64 holds
LONGEST_NAME = 200  # bytes of a name that is made of a run's words; file systems allow 255
# A file system that lacks an operation answers so (SMB, FUSE, …); a disk that is full or broken never does.
UNSUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM}
UNOPENED = UNSUPPORTED | {errno.EACCES, errno.EBADF, errno.EISDIR}  # of a directory

_told = False  # that files can't be flushed


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file beside, to be written: then it is flushed to the disk and takes the place of `path`. A reader sees the old
    file or the new one, never half of one, after a power cut as well. Its permissions are those of a new file: what
    the umask, or the directory's own rules, leave.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with naming(path):
            beside.unlink(missing_ok=True)  # of a process of the same number, which was killed
            yield beside
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


def read_json(path: Path) -> Any:
    """What a JSON file of ours holds. Raises OSError where it cannot be read and ValueError where it is no JSON, or has
    a number that no record has: one past an int64, NaN or infinity.
    """
    try:
        return json.loads(read_regular(path), parse_int=whole, parse_float=finite, parse_constant=finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_regular(path: Path) -> bytes:
    """The whole of a file, as `open_regular` opens it."""
    with open_regular(path) as file:
        return file.read()


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file that somebody else may have put there, without waiting: a named pipe or a device, which might never
    end, is not read. Raises OSError.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return file


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
    if text[:1] in ("", ".") or not {"/", "'", '"', "\0"}.isdisjoint(text):
        return False
    try:
        return len(os.fsencode(text)) <= LONGEST_NAME
    except UnicodeEncodeError:  # half of a character, from a damaged record
        return False


def is_utf8(path: Path) -> bool:
    """Whether a path is the same bytes in UTF-8 as for the file system: TensorBoard writes to the former alone."""
    try:
        return os.fsencode(path) == str(path).encode()
    except UnicodeEncodeError:
        return False


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
    if path.is_dir():
        with optional(path, UNOPENED), opened(path, os.O_RDONLY) as handle:
            os.fsync(handle)
    else:  # for writing, without which some file systems flush nothing
        with opened(path, os.O_RDWR) as handle:
            flush(handle, path.parent)


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    handle = os.open(path, flags)
    try:
        yield handle
    finally:
        os.close(handle)


def flush(handle: int, directory: Path) -> None:
    """Flush what was written to an open file of a directory to the disk, where the file system can."""
    with optional(directory, UNSUPPORTED):
        os.fsync(handle)


@contextmanager
def optional(directory: Path, codes: set[int]) -> Iterator[None]:
    """A flush, which protects files and isn't needed to write them: with one of these error codes it is done without,
    and once a process a line says so.
    """
    global _told  # noqa: PLW0603 - once a process
    try:
        yield
    except OSError as error:
        if error.errno not in codes:
            raise
        if not _told and multiprocessing.parent_process() is None:
            _told = True
            why = f"files cannot be flushed to the disk there ({error.strerror}), a power cut may damage them"
            print_error(f"{directory}: {why}")


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
