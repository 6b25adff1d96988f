"""Locks between processes, so that only one writes to a directory and only one downloads a data set.

The system releases a lock when its process ends, however it ends.
"""

import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from bnexp.runs.config import ConfigError

LOCK = ".lock"

logging.getLogger("filelock").setLevel(logging.WARNING)  # its attempts don't belong in a run's log


class Lock:
    """The exclusive use of a directory by this process until `release`, or in a `with` block.

    The directory is created where it is missing. A process may lock a directory more than once. Raises ConfigError
    where another process holds the lock or the directory can't be locked or, because of its path or permissions,
    created, and OSError for other errors of creating it. Where it can't be locked, directories that were created are
    removed.
    """

    def __init__(self, directory: Path) -> None:
        missing = [path for path in (directory / LOCK, directory, *directory.parents) if not path.exists()]
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as error:
            raise ConfigError(f"{directory} cannot be made: {error.filename}: {error.strerror}") from error
        path = directory.resolve() / LOCK
        # without locks, filelock would by default fall back to a file that outlives a killed process
        self.lock = FileLock(
            path, blocking=False, thread_local=False, is_singleton=True, fallback_to_soft=False, on_acquired=sign
        )
        try:
            self.lock.acquire()
        except Timeout as error:
            raise ConfigError(f"{directory} is in use: {holder_of(path)} writes there") from error
        except OSError as error:
            remove_empty(missing)
            raise ConfigError(
                f"{directory} cannot be locked ({error.strerror}): place the runs on another disk with "
                "hydra.run.dir=… or, of a sweep, hydra.sweep.dir=…"
            ) from error

    def release(self) -> None:
        """Release this lock. Others can lock the directory once every `Lock` of this process on it is released."""
        self.lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def sign(handle: int) -> None:
    """Write the process's id and machine into a locked file, for people to read. handle: the file's descriptor."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())


def is_locked(directory: Path) -> bool:
    """Return whether a process holds the lock of a directory. False where that can't be found out."""
    import fcntl  # noqa: PLC0415 - Windows has none

    with suppress(OSError), (directory / LOCK).open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def holder_of(path: Path) -> str:
    """Return the text that the process with the lock wrote to the file, or "another process" where none can be read."""
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        return file.read(100).strip() or "another process"
    return "another process"


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Wait for the lock on a file, hold it during the `with` body, and remove the file afterwards.

    Raises ConfigError where the file can't be locked.
    """
    lock = FileLock(path, fallback_to_soft=False)
    while not lock.is_locked:
        try:
            lock.acquire()
        except FileNotFoundError:  # a download that failed has removed the directory meanwhile
            continue
        except OSError as error:
            remove_empty([path])
            remedy = "place the data set on another disk with dataset.root=…"
            raise ConfigError(f"{path.parent} cannot be locked ({error.strerror}): {remedy}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def remove_empty(paths: list[Path]) -> None:
    """Remove files and empty directories in this order, and stop at the first one that can't be removed."""
    with suppress(OSError):
        for path in paths:
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
