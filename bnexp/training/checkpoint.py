"""Checkpoints: a member's complete state on disk, saved, verified, and found again by a run that is resumed."""

from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from bnexp.runs.config import RunConfig
from bnexp.runs.directory import CHECKPOINT, RESUME, config_digest, progress_path
from bnexp.runs.files import remove
from bnexp.runs.record import reproducibility_versions
from bnexp.runs.tensors import DamagedFileError, digest_path, load_tensors, load_with_metadata, save_tensors
from bnexp.training.engine import MemberState

KEPT_BACK = 2  # checkpoints of an unfinished run: the last one and, should it be damaged, the one before


@dataclass(frozen=True)
class Saved:
    """A member's state after `step` updates and `seconds` of training. tensors None: its initial state."""

    step: int = 0
    seconds: float = 0.0
    tensors: dict[str, Tensor] | None = None


def save_checkpoint(path: Path, state: MemberState, config: RunConfig) -> None:
    """Save parameters, buffers, optimizer state and step. Random numbers follow from the seed and the step."""
    tensors = {name: with_one_nan(tensor) for name, tensor in state.flat().items()}
    save_tensors(path, tensors, made_by(config_digest(config)))


def with_one_nan(tensor: Tensor) -> Tensor:
    """Give every NaN the same bits. Its sign depends on the order in which a compiler adds, and so would the bytes of a
    diverged network differ with its stack.
    """
    return tensor.masked_fill(tensor.isnan(), torch.nan) if tensor.is_floating_point() else tensor


def made_by(digest: str) -> dict[str, str]:
    """Metadata with the versions and the configuration's digest: one entry, since a file has several in any order."""
    versions = " ".join(f"{name} {version}" for name, version in reproducibility_versions().items())
    return {"made_by": f"{versions} config {digest}"}


def load_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read tensors by the names of `MemberState.flat`. Raises DamagedFileError where a byte has changed, OSError."""
    return load_tensors(path)


def save_progress(directory: Path, state: MemberState, config: RunConfig, seconds: float) -> None:
    """Save a checkpoint to resume from; those before the last two are deleted once it is on the disk."""
    metadata = {"seconds": f"{seconds:.6f}", **made_by(config_digest(config))}
    save_tensors(progress_path(directory, int(state.record["step"])), state.flat(), metadata)
    for path in sorted(directory.glob(RESUME))[:-KEPT_BACK]:
        remove(digest_path(path))
        remove(path)


def newest_checkpoint(directory: Path, config: RunConfig, shapes: dict[str, torch.Size]) -> Saved:
    """The latest whole checkpoint of this configuration, these versions of bnexp and torch, and these shapes; without
    one, the initial state. The final checkpoint of a diverged run is left out: that run lacks its summary alone,
    which is made again by resuming from before.
    """
    candidates = [Saved()]
    for path in (*directory.glob(RESUME), directory / CHECKPOINT):
        with suppress(FileNotFoundError, DamagedFileError, ValueError):
            tensors, metadata = load_with_metadata(path)
            ours = metadata.items() >= made_by(config_digest(config)).items()
            if not ours or {name: tensor.shape for name, tensor in tensors.items()} != shapes:
                continue
            saved = Saved(int(tensors["record.step"]), float(metadata.get("seconds", 0)), tensors)
            over = path.name == CHECKPOINT and int(tensors["record.diverged_at"]) >= 0
            if not over and 0 <= saved.step <= config.steps and isfinite(saved.seconds):
                candidates.append(saved)
    return max(candidates, key=lambda saved: saved.step)
