"""Files that a killed process or a power cut leaves whole."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_NAME = 200  # bytes of a name that is made of a run's words; file systems allow 255


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file beside, to be written: then it is flushed to the disk and takes the place of `path`. A reader sees the old
    file or the new one, never half of one, after a power cut as well.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield beside
        beside.chmod(0o644)  # safetensors makes it private; runs and caches are for sharing
        sync(beside)
        beside.replace(path)
        sync(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or what a directory lists, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
