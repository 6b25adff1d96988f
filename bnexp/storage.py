"""Tensors on disk: a safetensors file and, beside it, its SHA-256."""

import hashlib
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


class DamagedFileError(RuntimeError):
    """A file whose bytes are not those that were written."""


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, never half of one."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside, metadata)
        beside.chmod(0o644)  # safetensors makes it private; runs and caches are for sharing
        digest = file_digest(beside)
        beside.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    finally:
        beside.unlink(missing_ok=True)
    digest_path(path).write_text(f"{digest}  {path.name}\n")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Raises DamagedFileError where file and digest don't agree, FileNotFoundError where one is missing."""
    if digest_path(path).read_text().split()[:1] != [file_digest(path)]:
        raise DamagedFileError(f"{path} is damaged: its SHA-256 is not the one in {digest_path(path).name}")
    tensors: dict[str, Tensor] = load_file(path)
    return tensors
