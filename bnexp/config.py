"""The schema of a run, and the range of every value.

The dataclasses hold every key of every choice; a YAML file of conf/ lists the keys that its choice has.
"""

import copy
import math
import os
import pickle
import re
import struct
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bnexp.files import LARGEST

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("fp32", "bf16")
TRAINABLE = ("all", "norms")
SCHEDULES = ("constant", "cosine", "step")
AUGMENTS = ("none", "flip_crop")
BACKGROUNDS = ("white", "black", "grey")
UNIONS = {
    "arch.bias": "auto, true or false",
    "compile": "auto, true or false",
    "threads": "auto or a whole number from 1 to 1024",
}
KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
LONGEST_VALUE = 200  # characters of a value in a message
PATHS = ("dataset.root", "dataset.path", "init_from")  # keys whose values are paths
GROUPS = ("dataset", "arch", "act", "norm", "init", "optim", "experiment")


class ConfigError(ValueError):
    """A value the user gave that can't be used. Its text is one line: the key, the value, what is allowed."""


def require(ok: bool, key: str, value: object, allowed: str) -> None:
    if not ok:
        raise ConfigError(f"{key}={shown(value)} is not allowed: {allowed}")


def shown(value: object) -> str:
    """A value as a message has it: of a long one the beginning."""
    try:
        text = str(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of more than 4300 digits"
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}… ({len(text)} characters)"


def require_choice(key: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ConfigError(f"{key}={shown(value)} is unknown: choose from {', '.join(choices)}")


def require_positive(key: str, value: float) -> None:
    require(math.isfinite(value) and value > 0, key, value, "a finite number above 0")


SMALLEST = 2.0**-126  # of single precision; what is closer to 0 is computed as 0


def single(value: float) -> float:
    """What a step computes with: the nearest number of single precision, an infinity beyond its range."""
    try:
        number: float = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)
    return number if abs(number) >= SMALLEST or math.isnan(number) else 0.0


def require_single(key: str, value: float, fits: Callable[[float], bool], allowed: str) -> None:
    """A range holds in single precision, where 0 stands for 0 alone."""
    number = single(value)
    held = math.isfinite(number) and (number != 0 or value == 0)
    reach = "" if held else ", which goes from 1.2e-38 to 3.4e+38"
    require(held and fits(number), key, value, f"{allowed} in single precision{reach}")


def require_whole(key: str, value: int, least: int) -> None:
    require(least <= value <= LARGEST, key, value, f"a whole number of at least {least}, up to 2^63 - 1")


def require_path(key: str, value: str) -> None:
    """A folder that is there may have any name; one that is to be made has one that can be printed."""
    new = value[len(existing_part(value)) :]
    require(new.isprintable(), key, value, "a path that is there, or one of characters that can be printed")


def existing_part(path: str) -> str:
    """The longest beginning of a path that is there: itself, or one of the folders above."""
    ends = [len(path), *(place for place in range(len(path) - 1, 0, -1) if path[place] == "/")]
    return next((path[:end] for end in ends if os.path.exists(path[:end])), "")


def require_flat(key: str, values: list[Any]) -> None:
    """OmegaConf lets a list pass for a number or a name."""
    require(not any(isinstance(value, list) for value in values), key, values, "a list without lists in it")


def above_0(number: float) -> bool:
    return number > 0


def at_least_0(number: float) -> bool:
    return number >= 0


@dataclass
class DatasetConfig:
    name: str = "mnist"
    root: str = "data"
    path: str | None = None
    size: int = 32
    background: str = "white"
    validation: int = 5000
    standardize: bool = False
    binarize: bool = False
    limit: int | None = None
    augment: str = "none"
    conditions: list[str] = field(default_factory=list)
    classes: list[int] | None = None

    def __post_init__(self) -> None:
        require(1 <= self.size <= 4096, "dataset.size", self.size, "a whole number from 1 to 4096")
        require_whole("dataset.validation", self.validation, 1)
        in_range = self.limit is None or 1 <= self.limit <= LARGEST
        require(in_range, "dataset.limit", self.limit, "null or a whole number of at least 1, up to 2^63 - 1")
        require_choice("dataset.background", self.background, BACKGROUNDS)
        require_choice("dataset.augment", self.augment, AUGMENTS)
        require_flat("dataset.classes", self.classes or [])
        require_flat("dataset.conditions", self.conditions)
        chosen = self.classes
        fits = chosen is None or len({number for number in chosen if abs(number) <= LARGEST}) == len(chosen) >= 2
        require(fits, "dataset.classes", chosen, "null or two or more numbers of classes, each once")
        twice = len(set(self.conditions)) < len(self.conditions)
        require(not twice, "dataset.conditions", self.conditions, "each style once")


@dataclass
class ArchConfig:
    name: str = "mlp"
    hidden: list[int] = field(default_factory=lambda: [100, 100, 100])
    depth: int | None = None
    channels: list[int] = field(default_factory=lambda: [64, 128])
    dense: int = 256
    growth: int = 12
    norm_position: str = "before"
    bias: bool | str = "auto"
    pre_activation: bool = False
    residual_init_zero: bool = False
    skip_init: bool = False

    def __post_init__(self) -> None:
        for key, widths in (
            ("hidden", self.hidden),
            ("channels", self.channels),
            ("dense", [self.dense]),
            ("growth", [self.growth]),
        ):
            require_flat(f"arch.{key}", widths)
            fits = 1 <= len(widths) <= 1000 and all(1 <= width <= 65_536 for width in widths)
            require(fits, f"arch.{key}", widths, "1 to 1000 widths from 1 to 65536")
        require(
            self.depth is None or 1 <= self.depth <= 1000, "arch.depth", self.depth, "null or a number from 1 to 1000"
        )
        require_choice("arch.norm_position", self.norm_position, ("before", "after"))
        require(self.bias in ("auto", True, False), "arch.bias", self.bias, UNIONS["arch.bias"])


@dataclass
class ActConfig:
    name: str = "relu"


@dataclass
class NormConfig:
    name: str = "batch"
    eps: float = 1e-5
    momentum: float = 0.1
    unbiased: bool = True
    affine: bool = True
    groups: int = 4
    noise_shift: float = 0.5
    noise_scale: float = 1.25
    conditions: int = 1

    def __post_init__(self) -> None:
        require_single("norm.eps", self.eps, above_0, "a finite number above 0")
        require_single("norm.momentum", self.momentum, lambda m: 0 < m <= 1, "a number above 0 and up to 1")
        require_single("norm.noise_shift", self.noise_shift, at_least_0, "a finite number of at least 0")
        require_single("norm.noise_scale", self.noise_scale, lambda s: s >= 1, "a finite number of at least 1")
        require_whole("norm.groups", self.groups, 1)
        require_whole("norm.conditions", self.conditions, 1)


@dataclass
class InitConfig:
    name: str = "normal"
    std: float = 0.05

    def __post_init__(self) -> None:
        require_single("init.std", self.std, at_least_0, "a finite number of at least 0")


@dataclass
class OptimConfig:
    name: str = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: str = "constant"

    def __post_init__(self) -> None:
        require_single("optim.lr", self.lr, above_0, "a finite number above 0")
        require_single("optim.eps", self.eps, above_0, "a finite number above 0")
        for key in ("momentum", "beta1", "beta2"):
            value = getattr(self, key)
            require_single(f"optim.{key}", value, lambda v: 0 <= v < 1, "a number from 0 up to but not including 1")
        require_single("optim.weight_decay", self.weight_decay, at_least_0, "a finite number of at least 0")
        require_choice("optim.schedule", self.schedule, SCHEDULES)


@dataclass
class EvalConfig:
    first_every: int = 50
    first_until: int = 2000
    every: int = 500
    recalibrate: bool = False
    keep: bool = False

    def __post_init__(self) -> None:
        require_whole("eval.first_every", self.first_every, 1)
        require_whole("eval.first_until", self.first_until, 0)
        require_whole("eval.every", self.every, 1)

    def due(self, step: int, last: int) -> bool:
        """Whether the network is evaluated after `step` updates out of `last`."""
        return step == last or step % (self.first_every if step <= self.first_until else self.every) == 0

    def times(self, last: int) -> int:
        """How many evaluations that makes."""
        often = min(self.first_until, last)
        seldom = last // self.every - often // self.every
        return 1 + often // self.first_every + seldom + (not self.due(last, last + 1))


@dataclass
class CheckpointConfig:
    every_seconds: float = 60.0

    def __post_init__(self) -> None:
        require_positive("checkpoint.every_seconds", self.every_seconds)


@dataclass
class RunConfig:
    """One training, fixed by these values: same configuration, same machine, same curve."""

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    arch: ArchConfig = field(default_factory=ArchConfig)
    act: ActConfig = field(default_factory=ActConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    init: InitConfig = field(default_factory=InitConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    seed: int = 0
    steps: int = 50_000
    batch_size: int = 60
    device: str = "auto"
    threads: int | str = "auto"
    compile: bool | str = "auto"
    precision: str = "fp32"
    init_from: str | None = None
    trainable: str = "all"

    def __post_init__(self) -> None:
        require(0 <= self.seed <= LARGEST, "seed", self.seed, "a whole number from 0 to 2^63 - 1")
        require(1 <= self.steps <= 10**9, "steps", self.steps, "a whole number from 1 to 1000000000")
        require_whole("batch_size", self.batch_size, 1)
        require_choice("device", self.device, DEVICES)
        count = isinstance(self.threads, int) and not isinstance(self.threads, bool) and 1 <= self.threads <= 1024
        require(self.threads == "auto" or count, "threads", self.threads, UNIONS["threads"])
        require(self.compile in ("auto", True, False), "compile", self.compile, UNIONS["compile"])
        require_choice("precision", self.precision, PRECISIONS)
        require_choice("trainable", self.trainable, TRAINABLE)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@cache
def schema() -> bytes:
    """RunConfig as OmegaConf has it, pickled: made anew it takes 10 ms, copied 4 ms, read 0.6 ms."""
    return pickle.dumps(OmegaConf.structured(RunConfig))


def parse(config: DictConfig) -> RunConfig:
    """Typed and range-checked configuration. Raises ConfigError with one line that names the key."""
    run = typed(config)
    for key, path in paths_in(run).items():
        require_path(key, path)
    return run


def typed(config: DictConfig) -> RunConfig:
    """As `parse`, of paths that may be relative to another directory than this one."""
    try:
        merged = pickle.loads(schema())
        merged.merge_with(config)
        run = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = error.full_key or "the configuration"
        value = OmegaConf.select(config, key, default="?", throw_on_resolution_failure=False)
        raise ConfigError(type_error(key, value, error)) from error
    except (OverflowError, ValueError):  # a ConfigError is a ValueError
        check_integers(OmegaConf.to_container(config, resolve=False), "")
        raise
    assert isinstance(run, RunConfig)
    return run


@cache
def schema_nodes() -> dict[str, DictConfig]:
    """RunConfig as OmegaConf has it, and each of its groups, by name; RunConfig itself by the empty name."""
    groups = {name: value for name, value in vars(RunConfig()).items() if is_dataclass(value)}
    return {name: OmegaConf.structured(type(value)) for name, value in ({"": RunConfig()} | groups).items()}


def typed_value(key: str, value: object) -> Any:
    """A value as the schema has it at a key: "1" of a text is 1 where a whole number belongs. Raises ConfigError."""
    group, _, name = key.rpartition(".")
    node = schema_nodes()[group]
    try:
        node[name] = value
        found = node[name]
    except OmegaConfBaseException as error:
        raise ConfigError(type_error(key, value, error)) from error
    except (OverflowError, ValueError):
        check_integers(value, key)
        raise
    return OmegaConf.to_container(found) if OmegaConf.is_config(found) else found


def with_values(run: RunConfig, values: dict[str, Any]) -> RunConfig:
    """A copy of a run with typed values at these keys, its ranges checked anew. Raises ConfigError."""
    changes: dict[str, dict[str, Any]] = {"": {}}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        changes.setdefault(group, {})[name] = value
    groups = {group: replace(getattr(run, group), **part) for group, part in changes.items() if group}
    found = replace(run, **changes[""], **groups)
    if not values.keys().isdisjoint(PATHS):
        for key, path in paths_in(found).items():
            require_path(key, path)
    return found


def check_integers(value: object, key: str) -> None:
    """What OmegaConf makes a float or a text of may be too large for either. Raises ConfigError."""
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else ((key, part) for part in value)
        for name, part in parts:
            check_integers(part, f"{key}.{name}" if key and isinstance(value, dict) else str(name))
    elif isinstance(value, int):
        require(abs(value) <= LARGEST, key, value, "a number, and a whole one from -(2^63 - 1) to 2^63 - 1")


def recorded(config: dict[str, Any]) -> RunConfig:
    """The configuration of a run's record; a key that is newer than the run has its default. Raises ConfigError, for
    one that is off or would be resolved: what a file says is never executed.
    """
    if not isinstance(config, dict) or "${" in str(with_paths(config, lambda _: "")):
        raise ConfigError("the configuration of a run's record is not allowed: it has a ${…} in it, or is no table")
    run = typed(OmegaConf.create(with_paths(config, literal)))
    for key, path in paths_in(run).items():
        require("\0" not in path, key, path, "a path")
    return run


def with_paths(config: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A copy of a record's configuration with its paths changed."""
    changed = copy.deepcopy(config)
    for group, _, name in (key.rpartition(".") for key in PATHS):
        table = changed.get(group) if group else changed
        if isinstance(table, dict) and isinstance(table.get(name), str):
            table[name] = change(table[name])
    return changed


def literal(text: str) -> str:
    """What OmegaConf reads as this text, whose ${…} is then no interpolation."""
    return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + r"\${", text)


@dataclass
class LocatedConfig(RunConfig):
    """A recorded run whose folders are where they are now. `as_dict`, and so the run's digest, is as it was typed."""

    typed: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return copy.deepcopy(self.typed)


def located(config: RunConfig, places: dict[str, str]) -> RunConfig:
    """The run with other places of the paths that it has, by their keys."""
    values = {name: getattr(config, name) for name in RunConfig.__dataclass_fields__}
    paths = {key: places.get(key, path) for key, path in paths_in(config).items()}
    dataset = replace(config.dataset, root=paths["dataset.root"], path=paths.get("dataset.path"))
    values |= {"dataset": dataset, "init_from": paths.get("init_from")}
    return LocatedConfig(**values, typed=config.as_dict())


def paths_in(config: RunConfig) -> dict[str, str]:
    """Its paths that are set, by their keys."""
    found = {"dataset.root": config.dataset.root, "dataset.path": config.dataset.path, "init_from": config.init_from}
    return {key: path for key, path in found.items() if path is not None}


def paths_of(config: RunConfig, directory: Path) -> dict[str, str]:
    """For a record: the absolute places of a run's directory and of the folders that it reads."""
    places = {key: os.path.abspath(path) for key, path in paths_in(config).items()}
    return {"directory": os.path.abspath(directory), **places}


def type_error(key: str, value: object, error: OmegaConfBaseException) -> str:
    """OmegaConf's complaint as a line of ours."""
    first = str(error).splitlines()[0]
    if key in UNIONS:
        return f"{key}={shown(value)} is not allowed: {UNIONS[key]}"
    kind = re.search(r"could not be converted to (\w+)", first)
    if kind and kind[1] in KINDS:
        return f"{key}={shown(value)} is not allowed: {KINDS[kind[1]]}"
    if "is not a ListConfig" in first:
        return f"{key}={shown(value)} is not allowed: a list, as in [100,100]"
    return f"{key}={shown(value)}: {first}"


@cache
def known_keys() -> tuple[str, ...]:
    """Groups and keys: norm, norm.eps, seed, …"""
    keys = list(GROUPS)
    for key, value in RunConfig().as_dict().items():
        keys += [f"{key}.{part}" for part in value if part != "name"] if isinstance(value, dict) else [key]
    return tuple(keys)


@cache
def whole_number_keys() -> frozenset[str]:
    """The keys whose value is a whole number."""
    hints = get_type_hints(RunConfig)
    for name, kind in list(hints.items()):
        if is_dataclass(kind):
            hints |= {f"{name}.{key}": part for key, part in get_type_hints(kind).items()}
    return frozenset(key for key, kind in hints.items() if kind in (int, int | None))
