"""`init_from`: a run that starts from the parameters and running averages of a finished run or a file."""

import hashlib
import os
import re
import warnings
from dataclasses import asdict, dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from bnexp.runs.config import ArchConfig, ConfigError, NormConfig, RunConfig, require
from bnexp.runs.directory import CHECKPOINT
from bnexp.runs.files import read_regular
from bnexp.runs.record import read_run
from bnexp.runs.tensors import DamagedFileError, file_digest, load_tensors

# Keys of the architecture that must be equal in both runs.
SHAPING = (
    *("name", "hidden", "depth", "channels", "dense", "growth", "norm_position", "pre_activation"),
    *("model", "recipe"),
)
OWN_BUFFERS = ("epsilon", "momentum", "kept")  # hyperparameters of norms and masks of dropout: each run has its own
NAME_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # in the name of a file, as torchvision and torch.hub have it
NEITHER = "not the directory of a run, nor a file of weights, .pth or .safetensors"
NAMES_SHOWN = 6  # names of tensors in a message


@dataclass(frozen=True)
class Source:
    """What a run starts from: a finished run, or a file of weights.

    config: of the run; None for a file. tensors: parameters and buffers by name, without the norms' hyperparameters.
    sha256: of the checkpoint or the file.
    """

    config: dict[str, Any] | None
    tensors: dict[str, Tensor]
    sha256: str


@dataclass(frozen=True)
class Match:
    """How the tensors of a source and of a network match, by name.

    loaded: copied from the source. skipped: in the source only, or of another shape. new: in the network only, or of
    another shape; they have their own initial values.
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
    """Copy the matching tensors of `init_from` into a network on the CPU. Raises ConfigError as `find_start` does."""
    match, targets = find_start(model, config), transferable(model)
    with torch.no_grad():
        for name in match.loaded:
            targets[name].copy_(source_of(config).tensors[name])


def find_start(model: nn.Module, config: RunConfig) -> Match:
    """Find which tensors a network takes from `init_from`: parameters and running averages of equal name and shape.

    The network may be on the meta device. Raises ConfigError if the architecture of a run differs in a key of SHAPING,
    if no tensor matches, and as `check_epsilon` and `read_source` do.
    """
    source = source_of(config)
    arch = vars(ArchConfig()) | source.config["arch"] if source.config else vars(config.arch)
    for name in SHAPING:
        theirs, ours = arch[name], getattr(config.arch, name)
        key = "arch" if name == "name" else f"arch.{name}"
        require(theirs == ours, "init_from", config.init_from, f"a run of {key}={theirs}, while this one has {ours}")
    shapes = {name: tensor.shape for name, tensor in transferable(model).items()}
    loaded = [name for name, shape in shapes.items() if name in source.tensors and source.tensors[name].shape == shape]
    require(bool(loaded), "init_from", config.init_from, mismatch(source, shapes))
    check_epsilon(config, source, loaded)
    skipped = [name for name in source.tensors if name not in loaded]
    return Match(loaded, skipped, new=[name for name in shapes if name not in loaded])


def mismatch(source: Source, shapes: dict[str, torch.Size]) -> str:
    """Return in words that no tensor of a source has the name and shape of one in the network, with a name of each."""
    theirs = next((f"{name} {tuple(tensor.shape)}" for name, tensor in source.tensors.items()), "nothing")
    ours = next(f"{name} {tuple(shape)}" for name, shape in shapes.items())
    return f"no tensor in it has the name and shape of one in this network (first there {theirs}, here {ours})"


def check_epsilon(config: RunConfig, source: Source, loaded: list[str]) -> None:
    """Raise ConfigError where frozen statistics come from a run with another ε: they would be another function."""
    if config.norm.name == "frozen_batch" and source.config and any(name.endswith("running_var") for name in loaded):
        trained = source.config["norm"].get("eps", NormConfig().eps)
        require(trained == config.norm.eps, "norm.eps", config.norm.eps, f"init_from was trained with {trained}")


def describe_start(model: nn.Module, config: RunConfig) -> dict[str, Any]:
    """Return the description of `init_from` for the run's record: the `Match`, and the source's SHA-256."""
    return asdict(find_start(model, config)) | {"sha256": source_of(config).sha256}


def transferable(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and float32 buffers, such as running averages, by name; hyperparameters are float64."""
    buffers = {name: buffer for name, buffer in model.named_buffers() if buffer.dtype == torch.float32}
    averages = {name: buffer for name, buffer in buffers.items() if name.rpartition(".")[2] not in OWN_BUFFERS}
    return dict(model.named_parameters()) | averages


def source_of(config: RunConfig) -> Source:
    """Return what this run starts from. Raises ConfigError as `read_source` does."""
    return read_source(str(config.init_from), config.init_sha256, Path.cwd())


@lru_cache(maxsize=4)
def read_source(path: str, digest: str | None, working_directory: Path) -> Source:
    """Read a finished run or a file of weights, and cache it. digest: the beginning of the file's SHA-256, if known.

    working_directory: not used, but a relative `path` depends on it. Raises ConfigError as `read_weights` and
    `read_finished` do.
    """
    return read_weights(path, digest) if os.path.isfile(path) else read_finished(path, digest)


def read_finished(directory: str, expected: str | None) -> Source:
    """Read a finished run. expected: the beginning of its checkpoint's SHA-256, if known.

    Raises ConfigError if the directory is not that of a finished run, or if its checkpoint is missing or damaged, or
    can't be read, or has another SHA-256.
    """
    key, folder = f"init_from={directory}", Path(directory)
    try:
        run = read_run(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{key} is not allowed: {NEITHER if folder.exists() else 'it is not there'}") from error
    status = run.summary["status"]
    require(status == "finished", "init_from", directory, f"a run that finished, while this one is {status}")
    try:
        stored, digest = load_tensors(folder / CHECKPOINT), file_digest(folder / CHECKPOINT)
    except FileNotFoundError as error:
        raise ConfigError(f"{key} is not allowed: a run without a checkpoint") from error
    except (DamagedFileError, OSError) as error:
        raise ConfigError(f"{key} is not allowed: {error}") from error
    check_digest(directory, digest, expected)
    groups = (name.partition(".") for name in stored)
    names = {name: f"{group}.{name}" for group, _, name in groups if group in ("parameters", "buffers")}
    tensors = {name: stored[place] for name, place in names.items() if name.rpartition(".")[2] not in OWN_BUFFERS}
    return Source(run.config, tensors, digest)


def read_weights(path: str, digest: str | None) -> Source:
    """Read a .pth file, as torchvision's are, or a .safetensors file.

    The SHA-256 of a .pth file must begin with `digest` or, without it, with the digits at the end of its name, as in
    resnet18-f37072fd.pth; tensors alone are unpickled. Raises ConfigError without these, for another SHA-256, and for a
    file that can't be read or isn't a table of tensors by name.
    """
    suffix, in_name = Path(path).suffix, NAME_DIGEST.search(Path(path).name)
    require(suffix in (".pth", ".safetensors"), "init_from", path, NEITHER)
    expected = digest or (in_name[1] if in_name and suffix == ".pth" else None)
    how = "init_sha256= has to give the SHA-256 of a .pth file whose name doesn't end in it, as …-f37072fd.pth does"
    require(suffix == ".safetensors" or expected is not None, "init_from", path, how)
    try:
        content = read_regular(Path(path))
    except OSError as error:
        raise ConfigError(f"init_from={path} can't be read: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    check_digest(path, found, expected)
    tensors = unpack(content, suffix, path)
    return Source(None, {renamed(name): tensor for name, tensor in tensors.items()}, found)


def check_digest(path: str, found: str, expected: str | None) -> None:
    """Raise ConfigError unless a SHA-256, `found`, begins with the `expected` digits, if there are any."""
    if expected and not found.startswith(expected):
        begins = f"its SHA-256 begins with {found[: len(expected)]}, not with {expected}"
        raise ConfigError(f"init_from={path} is not allowed: {begins}")


AS_WRITTEN = "torch.save(model.state_dict(), …) writes a file that can be read"


def unpack(content: bytes, suffix: str, path: str) -> dict[str, Tensor]:
    """Return the floating-point tensors in the content of a file. Raises ConfigError for anything else in it."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about a TorchScript archive, which is refused
            if suffix == ".safetensors":
                loaded = load(content)
            else:
                loaded = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive, or a pickle of other objects, raises anything
        why = f"it is damaged, or holds other things than tensors ({AS_WRITTEN})"
        raise ConfigError(f"init_from={path} is not allowed: {why}") from error
    tables = isinstance(loaded, dict) and all(map(is_plain, loaded.values()))
    require(tables, "init_from", path, f"it holds other things than tensors by name ({AS_WRITTEN})")
    return {str(name): tensor for name, tensor in loaded.items() if tensor.is_floating_point()}


def is_plain(value: object) -> bool:
    """Return whether a value is a tensor with a number for each of its places, on the CPU."""
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"


def renamed(name: str) -> str:
    """Return the name that torchvision gives a tensor now; files for its densenets have names of an earlier version."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name)
