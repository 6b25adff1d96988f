"""Checkpoints: a member's complete state on disk. They are saved, verified, and searched when a run is resumed."""

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
from bnexp.runs.tensors import DamagedFileError, digest_path, load_with_metadata, save_tensors
from bnexp.training.state import MemberState

KEPT_BACK = 2  # checkpoints of an unfinished run: the last one, and the one before in case that is damaged


@dataclass(frozen=True)
class Saved:
    """A member's state after `step` updates and `seconds` of training.

    seconds: 0 from a final checkpoint. tensors: as `MemberState.flat` names them; None for the initial state.
    """

    step: int = 0
    seconds: float = 0.0
    tensors: dict[str, Tensor] | None = None


def save_checkpoint(path: Path, state: MemberState, config: RunConfig) -> None:
    """Save a member's parameters, buffers, optimizer state and record. Random numbers follow from seed and step."""
    tensors = {name: with_one_nan(tensor) for name, tensor in state.flat().items()}
    save_tensors(path, tensors, made_by(config_digest(config)))


def with_one_nan(tensor: Tensor) -> Tensor:
    """Return a tensor with the same bits in every NaN: a copy, or the tensor itself if it isn't floating-point.

    A NaN's sign depends on the order in which compiled code adds: the bytes of a diverged network would depend on its
    stack.
    """
    return tensor.masked_fill(tensor.isnan(), torch.nan) if tensor.is_floating_point() else tensor


def made_by(digest: str) -> dict[str, str]:
    """Return a checkpoint's metadata: versions of bnexp and torch and the configuration's digest, as one entry, since a
    file orders several at random.
    """
    versions = " ".join(f"{name} {version}" for name, version in reproducibility_versions().items())
    return {"made_by": f"{versions} config {digest}"}


def save_progress(directory: Path, state: MemberState, config: RunConfig, seconds: float) -> None:
    """Save a checkpoint from which the run can be resumed, then delete all such checkpoints except the last two.

    seconds: of training in all. The caller has synced the recorder, whose rows the checkpoint relies on.
    """
    metadata = {"seconds": f"{seconds:.6f}", **made_by(config_digest(config))}
    save_tensors(progress_path(directory, int(state.record["step"])), state.flat(), metadata)
    for path in sorted(directory.glob(RESUME))[:-KEPT_BACK]:
        remove(digest_path(path))
        remove(path)


def newest_checkpoint(directory: Path, config: RunConfig, shapes: dict[str, torch.Size]) -> Saved:
    """Return the latest undamaged checkpoint of a configuration, or the initial state if there is none.

    It must be from the installed versions of bnexp and torch, and have tensors of these names and shapes. Checkpoints
    of evaluations (eval.keep) are ignored, and so is the final one of a diverged run: if its summary is missing, the
    run is resumed, and writes a summary when it diverges again. Raises OSError if a checkpoint can't be read.
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
