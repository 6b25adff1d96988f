"""One owner a directory."""

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


_held: set[Path] = set()  # by this process


class Lock:
    """A directory's, made where it is missing. The system lets go of it when the process ends, however it ends. A
    process may hold it more than once; raises ConfigError where another one does.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.place = directory.resolve()
        self.file = None if self.place in _held else take(directory)
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
            file = path.open("a")
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
            file.close()


def take(directory: Path) -> TextIO:
    file = (directory / LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read(100).strip() or "another process"
        file.close()
        raise ConfigError(f"{directory} is in use: {holder} writes there") from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return file
