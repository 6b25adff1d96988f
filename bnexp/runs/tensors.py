"""Store tensors in a safetensors file, with its SHA-256 in a second file. No pickle is written or read."""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from bnexp.runs.files import read_regular, replaced, write_whole


class DamagedFileError(RuntimeError):
    """The error raised where a file does not hold the bytes that were written."""


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the digest of a file's content in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def digest_path(path: Path) -> Path:
    """Return the path of the file with the SHA-256 of the file at `path`."""
    return path.with_name(path.name + ".sha256")


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and metadata to a file, and then its digest to a second file.

    Until the digest is written, `load_tensors` takes the file as damaged or missing.
    """
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    with replaced(path) as beside:
        beside.write_bytes(content)
    write_whole(digest_path(path), f"{hashlib.sha256(content).hexdigest()}  {path.name}\n")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, after checking its digest. Raises as `load_with_metadata`."""
    return load_with_metadata(path)[0]


def load_with_metadata(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a file, after checking its digest.

    The file is read once, so that the checked bytes are used, and is not mapped into memory, which some file systems
    refuse. Raises DamagedFileError where file and digest don't agree or the file is not safetensors, FileNotFoundError
    where one of them is missing, and OSError where one can't be read.
    """
    digest, content = read_regular(digest_path(path)), read_regular(path)
    if digest.split()[:1] != [hashlib.sha256(content).hexdigest().encode()]:
        raise DamagedFileError(f"{path} is damaged: its SHA-256 is not the one in {digest_path(path).name}")
    try:
        return load(content), metadata_of(content)
    except (SafetensorError, ValueError) as error:
        raise DamagedFileError(f"{path} is damaged: {error}") from error


def metadata_of(content: bytes) -> dict[str, str]:
    """Return the metadata in a safetensors file's content: 8 bytes of the header's length, then the header in JSON."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return dict(header.get("__metadata__", {}))
