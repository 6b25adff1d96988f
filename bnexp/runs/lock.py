"""Locks between processes: one writer a directory, one download at a time. The system releases a lock when its process
ends, however it ends.
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

logging.getLogger("filelock").setLevel(logging.WARNING)  # its attempts are no news of a run


class Lock:
    """Exclusive use of a directory, which is created where it is missing, until `release`. A process may hold it more
    than once. Raises ConfigError where another process holds it, or where nothing can be locked; then no directory is
    left behind that wasn't there.
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
            remove(missing)
            raise ConfigError(
                f"{directory} cannot be locked ({error.strerror}): place the runs on another disk with "
                "hydra.run.dir=… or, of a sweep, hydra.sweep.dir=…"
            ) from error

    def release(self) -> None:
        """Give up the directory, once every `Lock` of this process on it is released."""
        self.lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def sign(handle: int) -> None:
    """Write into a locked file who holds it, for people to read."""
    with suppress(OSError):
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())


def holder_of(path: Path) -> str:
    """What the process that holds a lock has written into its file."""
    with suppress(OSError), path.open(encoding="utf-8", errors="replace") as file:
        return file.read(100).strip() or "another process"
    return "another process"


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Hold a lock file while the block runs, once every other process is done with it; it is removed in the end.
    Raises ConfigError where nothing can be locked.
    """
    lock = FileLock(path, fallback_to_soft=False)
    while not lock.is_locked:
        try:
            lock.acquire()
        except FileNotFoundError:  # a download that failed has removed the directory meanwhile
            continue
        except OSError as error:
            remove([path])
            remedy = "place the data set on another disk with dataset.root=…"
            raise ConfigError(f"{path.parent} cannot be locked ({error.strerror}): {remedy}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def remove(paths: list[Path]) -> None:
    """Remove a file and the directories above it, from the deepest up, as far as nothing else is in them."""
    with suppress(OSError):
        for path in paths:
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
