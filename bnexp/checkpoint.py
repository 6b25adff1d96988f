"""A member's complete state on disk: save it, verify it, read it back."""

from pathlib import Path

from torch import Tensor

from bnexp.engine import MemberState
from bnexp.storage import load_tensors, save_tensors


def save_checkpoint(path: Path, state: MemberState, config_digest: str) -> None:
    """Parameters, buffers, optimizer state and step; the random numbers follow from the seed and the step."""
    save_tensors(path, state.flat(), {"config": config_digest})


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors by the names of `MemberState.flat`. Raises DamagedFileError where a byte changed."""
    return load_tensors(path)
