"""Tensors on disk: a safetensors file and, beside it, its SHA-256. No pickle is written or read."""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bnexp.files import read_regular, replaced, write_whole


class DamagedFileError(RuntimeError):
    """A file whose bytes are not those that were written."""


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """The file is whole and on the disk before its digest appears; without one that fits it doesn't count."""
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    with replaced(path) as beside:
        beside.write_bytes(content)
    write_whole(digest_path(path), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """As `load_with_metadata`."""
    return load_with_metadata(path)[0]


def load_with_metadata(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata. What was checked is what is used: the file is read once, and not mapped into memory, which
    some file systems refuse. Raises DamagedFileError where file and digest don't agree, FileNotFoundError where one is
    missing, another OSError where one can't be read.
    """
    digest, content = read_regular(digest_path(path)), read_regular(path)
    if digest.split()[:1] != [hashlib.sha256(content).hexdigest().encode()]:
        raise DamagedFileError(f"{path} is damaged: its SHA-256 is not the one in {digest_path(path).name}")
    try:
        return load(content), metadata_of(content)
    except (SafetensorError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error


def metadata_of(content: bytes) -> dict[str, str]:
    """Of a safetensors file: 8 bytes with the length of its header, then the header in JSON."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return dict(header.get("__metadata__", {}))
