"""`init_from`: a run that starts from the parameters and running averages of a finished one."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnexp.config import ConfigError, RunConfig, require
from bnexp.runs import CHECKPOINT, read_run
from bnexp.storage import DamagedFileError, file_digest, load_tensors

# keys that have to agree
SHAPING = ("name", "hidden", "depth", "channels", "dense", "growth", "norm_position", "pre_activation")
FEW = 6  # names that a line gives


@dataclass(frozen=True)
class Source:
    """A finished run: its configuration, its checkpoint's parameters and buffers by name, the checkpoint's SHA-256."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    sha256: str


@dataclass(frozen=True)
class Match:
    """Names of tensors: taken from the source, left in it, and those of this network that keep their own start."""

    loaded: list[str]
    skipped: list[str]
    new: list[str]

    def __str__(self) -> str:
        parts = (
            f"{len(names)} {what}{listed(names)}" for what, names in (("skipped", self.skipped), ("new", self.new))
        )
        return f"{len(self.loaded)} tensors loaded, {', '.join(parts)}"


def listed(names: list[str]) -> str:
    return f" ({', '.join(names[:FEW])}{', …' if len(names) > FEW else ''})" if names else ""


def load_start(model: nn.Module, config: RunConfig) -> None:
    """Put the source's values into a network on the CPU. Raises ConfigError, with nothing put in."""
    match, targets = find_start(model, config), state_of(model)
    with torch.no_grad():
        for name in match.loaded:
            targets[name].copy_(source_of(config).tensors[name])


def find_start(model: nn.Module, config: RunConfig) -> Match:
    """What a run's network, with or without values, takes from its source: every parameter and running average of the
    same name and shape. Raises ConfigError.
    """
    source = source_of(config)
    for name in SHAPING:
        theirs, ours = source.config["arch"].get(name), getattr(config.arch, name)
        where = "arch" if name == "name" else f"arch.{name}"
        require(theirs == ours, "init_from", config.init_from, f"a run of {where}={theirs}, while this one has {ours}")
    match = match_tensors(model, source)
    fits = bool(match.loaded)
    require(fits, "init_from", config.init_from, "nothing in that run has the name and shape of something in this one")
    return match


def describe_start(model: nn.Module, config: RunConfig) -> dict[str, Any]:
    """For the run's record."""
    return asdict(find_start(model, config)) | {"sha256": source_digest(config)}


def source_digest(config: RunConfig) -> str:
    """SHA-256 of the checkpoint that the run starts from. Raises ConfigError."""
    return source_of(config).sha256


def match_tensors(model: nn.Module, source: Source) -> Match:
    targets = {name: tensor.shape for name, tensor in state_of(model).items()}
    loaded = [name for name, shape in targets.items() if name in source.tensors and source.tensors[name].shape == shape]
    return Match(
        loaded,
        skipped=[name for name in source.tensors if name not in loaded],
        new=[name for name in targets if name not in loaded],
    )


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and running averages; not the norms' numbers (float64) and inputs (int64), which are a run's own."""
    kept = {name: buffer for name, buffer in model.named_buffers() if buffer.dtype == torch.float32}
    return dict(model.named_parameters()) | kept


def source_of(config: RunConfig) -> Source:
    return read_source(str(config.init_from), Path.cwd())


@lru_cache(maxsize=4)
def read_source(directory: str, here: Path) -> Source:
    """`here`: what a relative path is relative to, of which the cache has to know. Raises ConfigError where it is no
    run's directory, or the checkpoint is missing or damaged.
    """
    key, folder = f"init_from={directory}", Path(directory)
    try:
        run = read_run(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key} is not allowed: not the directory of a run") from error
    status = run.summary["status"]
    require(status == "finished", "init_from", directory, f"a run that finished, while this one is {status}")
    try:
        kept = load_tensors(folder / CHECKPOINT)
        digest = file_digest(folder / CHECKPOINT)
    except FileNotFoundError as error:
        raise ConfigError(f"{key} is not allowed: a run without a checkpoint") from error
    except (DamagedFileError, OSError) as error:
        raise ConfigError(f"{key} is not allowed: {error}") from error
    numbers = ("epsilon", "momentum")
    named = {
        name.partition(".")[2]: tensor for name, tensor in kept.items() if name.startswith(("parameters.", "buffers."))
    }
    tensors = {name: tensor for name, tensor in named.items() if name.rpartition(".")[2] not in numbers}
    return Source(run.config, tensors, digest)
