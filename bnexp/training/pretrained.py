"""`init_from`: a run that starts from the parameters and running averages of a finished run."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnexp.runs.config import ConfigError, RunConfig, require
from bnexp.runs.directory import CHECKPOINT
from bnexp.runs.record import read_run
from bnexp.runs.tensors import DamagedFileError, file_digest, load_tensors

# Keys of the architecture that must be equal in both runs.
SHAPING = ("name", "hidden", "depth", "channels", "dense", "growth", "norm_position", "pre_activation")
SCALARS = ("epsilon", "momentum")  # buffers of norms with hyperparameters: each run has its own
NAMES_SHOWN = 6  # names of tensors in a message


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, from which another starts.

    tensors: parameters and buffers of its checkpoint by name, without the norms' hyperparameters. sha256: of the
    checkpoint.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    sha256: str


@dataclass(frozen=True)
class Match:
    """How the tensors of a finished run and of a network match, by name.

    loaded: copied from the finished run. skipped: in the finished run only, or of another shape. new: in the network
    only, or of another shape; they have their own initial values.
    """

    loaded: list[str]
    skipped: list[str]
    new: list[str]

    def __str__(self) -> str:
        return f"{len(self.loaded)} tensors loaded, {listed(self.skipped, 'skipped')}, {listed(self.new, 'new')}"


def listed(names: list[str], kind: str) -> str:
    """Return a text such as "2 new (a, b)": the number of names, the kind, and the first 6 names."""
    more = ", …" if len(names) > NAMES_SHOWN else ""
    return f"{len(names)} {kind}" + (f" ({', '.join(names[:NAMES_SHOWN])}{more})" if names else "")


def load_start(model: nn.Module, config: RunConfig) -> None:
    """Copy the finished run's matching tensors into a network on the CPU. Raises ConfigError as `find_start` does."""
    match, targets = find_start(model, config), transferable(model)
    with torch.no_grad():
        for name in match.loaded:
            targets[name].copy_(source_of(config).tensors[name])


def find_start(model: nn.Module, config: RunConfig) -> Match:
    """Find which tensors a network takes from the finished run: parameters and running averages of equal name and
    shape.

    The network may be on the meta device. Raises ConfigError if the architectures differ in a key of SHAPING, if no
    tensor matches, and as `read_source` does.
    """
    source = source_of(config)
    for name in SHAPING:
        theirs, ours = source.config["arch"].get(name), getattr(config.arch, name)
        key = "arch" if name == "name" else f"arch.{name}"
        require(theirs == ours, "init_from", config.init_from, f"a run of {key}={theirs}, while this one has {ours}")
    shapes = {name: tensor.shape for name, tensor in transferable(model).items()}
    loaded = [name for name, shape in shapes.items() if name in source.tensors and source.tensors[name].shape == shape]
    nothing = "nothing in that run has the name and shape of something in this one"
    require(bool(loaded), "init_from", config.init_from, nothing)
    skipped = [name for name in source.tensors if name not in loaded]
    return Match(loaded, skipped, new=[name for name in shapes if name not in loaded])


def describe_start(model: nn.Module, config: RunConfig) -> dict[str, Any]:
    """Return the description of `init_from` for the run's record: the `Match`, and the SHA-256 of the checkpoint."""
    return asdict(find_start(model, config)) | {"sha256": source_of(config).sha256}


def transferable(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and float32 buffers, such as running averages, by name; hyperparameters are float64."""
    averages = {name: buffer for name, buffer in model.named_buffers() if buffer.dtype == torch.float32}
    return dict(model.named_parameters()) | averages


def source_of(config: RunConfig) -> FinishedRun:
    """Return the finished run that this one starts from. Raises ConfigError as `read_source` does."""
    return read_source(str(config.init_from), Path.cwd())


@lru_cache(maxsize=4)
def read_source(directory: str, working_directory: Path) -> FinishedRun:
    """Read a finished run, and cache it. working_directory: not used, but a relative `directory` depends on it.

    Raises ConfigError if the directory is not that of a finished run, or if its checkpoint is missing or damaged, or
    can't be read.
    """
    key, folder = f"init_from={directory}", Path(directory)
    try:
        run = read_run(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key} is not allowed: not the directory of a run") from error
    status = run.summary["status"]
    require(status == "finished", "init_from", directory, f"a run that finished, while this one is {status}")
    try:
        stored, digest = load_tensors(folder / CHECKPOINT), file_digest(folder / CHECKPOINT)
    except FileNotFoundError as error:
        raise ConfigError(f"{key} is not allowed: a run without a checkpoint") from error
    except (DamagedFileError, OSError) as error:
        raise ConfigError(f"{key} is not allowed: {error}") from error
    groups = (name.partition(".") for name in stored)
    names = {name: f"{group}.{name}" for group, _, name in groups if group in ("parameters", "buffers")}
    tensors = {name: stored[place] for name, place in names.items() if name.rpartition(".")[2] not in SCALARS}
    return FinishedRun(run.config, tensors, digest)
