"""Tensors on disk: a safetensors file with its SHA-256 beside it. No pickle is written or read."""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bnexp.runs.files import read_regular, replaced, write_whole


class DamagedFileError(RuntimeError):
    """A file does not hold the bytes that were written."""


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Digest of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def digest_path(path: Path) -> Path:
    """The file with the SHA-256 of another one."""
    return path.with_name(path.name + ".sha256")


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file and then its digest. Until the digest fits, the file is taken for damaged or missing."""
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    with replaced(path) as beside:
        beside.write_bytes(content)
    write_whole(digest_path(path), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, by name. Raises what `load_with_metadata` raises."""
    return load_with_metadata(path)[0]


def load_with_metadata(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file's tensors and metadata, once, so that what is checked is what is used; not mapped into memory, which
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
    """The metadata of a safetensors file, which begins with 8 bytes of its header's length and the header in JSON."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return dict(header.get("__metadata__", {}))
