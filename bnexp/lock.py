"""One owner a directory."""

import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from bnexp.config import ConfigError

LOCK = ".lock"
IN_USE = {errno.EAGAIN, errno.EACCES}  # what somebody who comes second is answered, by SMB the latter

_held: set[Path] = set()  # by this process


class Lock:
    """A directory's, made where it is missing. The system lets go of it when the process ends, however it ends. A
    process may hold it more than once; raises ConfigError where another one does, or where the file system has no
    locks; then no directory is left behind that wasn't there.
    """

    def __init__(self, directory: Path) -> None:
        made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except (FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError) as error:
            raise ConfigError(f"{directory} cannot be made: {error.filename}: {error.strerror}") from error
        self.place = directory.resolve()
        try:
            self.file = None if self.place in _held else take(directory)
        except BaseException:
            remove_empty(made)
            raise
        _held.add(self.place)

    def release(self) -> None:
        if self.file is not None:
            self.file.close()
            _held.discard(self.place)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """Alone with what the file stands for; whoever comes meanwhile waits. In the end the file is gone."""
    file = wait_for(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def wait_for(path: Path) -> TextIO:
    """The file, locked: not one that who had it before has removed meanwhile."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            file = path.open("a", encoding="utf-8")
            with locking(file, path, "the data set on another disk with dataset.root=…"):
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
            file.close()


def take(directory: Path) -> TextIO:
    """The directory's file, locked. Raises ConfigError where it can't be."""
    path = directory / LOCK
    file = path.open("a+", encoding="utf-8", errors="replace")
    try:
        with locking(file, path, "the runs on another disk with hydra.run.dir=… or, of a sweep, hydra.sweep.dir=…"):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ConfigError(f"{directory} is in use: {holder_of(file)} writes there") from error
    with suppress(OSError):  # for people to read
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
    return file


def holder_of(file: TextIO) -> str:
    """What the process that holds a lock has written into its file, which is closed."""
    with file, suppress(OSError):
        file.seek(0)
        return file.read(100).strip() or "another process"
    return "another process"


@contextmanager
def locking(file: TextIO, path: Path, remedy: str) -> Iterator[None]:
    """Raises ConfigError with the remedy where nothing can be locked, whatever the reason; then the file is removed."""
    try:
        yield
    except OSError as error:
        if error.errno in IN_USE:
            raise
        file.close()
        with suppress(OSError):
            path.unlink()
        raise ConfigError(f"{path.parent} cannot be locked ({error.strerror}): {remedy}") from error


def remove_empty(folders: list[Path]) -> None:
    """From the deepest up, as far as nothing is in them."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
