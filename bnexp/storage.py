"""Tensors on disk: a safetensors file and, beside it, its SHA-256. No pickle is written or read."""

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bnexp.files import replaced, write_whole


class DamagedFileError(RuntimeError):
    """A file whose bytes are not those that were written."""


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """The file is whole and on the disk before its digest appears; without one that fits it doesn't count."""
    try:
        with replaced(path) as beside:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, beside, metadata)
            digest = file_digest(beside)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from error
    write_whole(digest_path(path), f"{digest}  {path.name}\n")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Raises DamagedFileError where file and digest don't agree, FileNotFoundError where one is missing."""
    if digest_path(path).read_bytes().split()[:1] != [file_digest(path).encode()]:
        raise DamagedFileError(f"{path} is damaged: its SHA-256 is not the one in {digest_path(path).name}")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error
    return tensors


def load_metadata(path: Path) -> dict[str, str]:
    """Of a file that `load_tensors` has found whole."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})
