"""Make typed and range-checked configurations from composed ones, single values and records."""

import copy
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from bnexp.runs.config import LARGEST, PATHS, ConfigError, RunConfig, fields_by_key, require, require_path, shown


@cache
def schema() -> bytes:
    """Return the structured configuration of RunConfig, pickled: unpickling takes 0.6 ms, making it anew 10 ms."""
    return pickle.dumps(OmegaConf.structured(RunConfig))


def parse(config: DictConfig) -> RunConfig:
    """Convert a composed configuration to a typed and range-checked one. Raises ConfigError for invalid values."""
    run = typed(config)
    for key, path in paths_in(run).items():
        require_path(key, path)
    return run


def typed(config: DictConfig) -> RunConfig:
    """Convert a configuration to a typed and range-checked one, as `parse` does, but don't check its paths.

    They may be relative to another directory. Raises ConfigError for invalid values.
    """
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
    """Return OmegaConf's structured configurations of RunConfig (key "") and of its groups (by their names)."""
    groups = {name: value for name, value in vars(RunConfig()).items() if is_dataclass(value)}
    return {name: OmegaConf.structured(type(value)) for name, value in ({"": RunConfig()} | groups).items()}


def typed_value(key: str, value: object) -> Any:
    """Convert a value to a key's type, as "1" to 1; its range isn't checked. Raises ConfigError for another type."""
    group, _, name = key.rpartition(".")
    node = schema_nodes()[group]
    try:
        node[name] = value
        converted = node[name]
    except OmegaConfBaseException as error:
        raise ConfigError(type_error(key, value, error)) from error
    except (OverflowError, ValueError):
        check_integers(value, key)
        raise
    return OmegaConf.to_container(converted) if OmegaConf.is_config(converted) else converted


def with_values(run: RunConfig, values: dict[str, Any]) -> RunConfig:
    """Return a copy of a configuration with these typed values, by dotted keys. Raises ConfigError for invalid ones."""
    changed = replaced(run, values)
    if not values.keys().isdisjoint(PATHS):
        for key, path in paths_in(changed).items():
            require_path(key, path)
    return changed


def replaced(run: RunConfig, values: dict[str, Any]) -> RunConfig:
    """Return a copy of a configuration with these typed values, by dotted keys, as `with_values`; don't check paths."""
    changes: dict[str, dict[str, Any]] = {"": {}}
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        changes.setdefault(group, {})[name] = value
    groups = {group: replace(getattr(run, group), **part) for group, part in changes.items() if group}
    return replace(run, **changes[""], **groups)


def check_integers(value: object, key: str) -> None:
    """Raise ConfigError for an integer beyond int64 in a value or in its nested dictionaries and lists.

    key: the value's key, "" for a whole configuration.
    """
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else ((key, part) for part in value)
        for name, part in parts:
            check_integers(part, f"{key}.{name}" if key and isinstance(value, dict) else str(name))
    elif isinstance(value, int):
        require(abs(value) <= LARGEST, key, value, "a number, and a whole one from -(2^63 - 1) to 2^63 - 1")


def recorded(config: dict[str, Any]) -> RunConfig:
    """Make the typed configuration of a run's record; a key that the record lacks has its default.

    Raises ConfigError for invalid values and, outside of paths, for interpolations: resolving them could execute code.
    """
    if not isinstance(config, dict) or "${" in str(with_paths(config, lambda _: "")):
        raise ConfigError("the configuration of a run's record is not allowed: it has a ${…} in it, or is no table")
    run = typed(OmegaConf.create(with_paths(config, literal)))
    for key, path in paths_in(run).items():
        require("\0" not in path, key, path, "a path")
    return run


def with_paths(config: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return a copy of a configuration, as nested dictionaries, in which `change` is applied to every path."""
    changed = copy.deepcopy(config)
    for group, _, name in (key.rpartition(".") for key in PATHS):
        table = changed.get(group) if group else changed
        if isinstance(table, dict) and isinstance(table.get(name), str):
            table[name] = change(table[name])
    return changed


def literal(text: str) -> str:
    """Escape ${ in a text, so that OmegaConf reads no interpolation in it."""
    return re.sub(r"(\\*)\$\{", lambda match: 2 * match[1] + r"\${", text)


@dataclass
class LocatedConfig(RunConfig):
    """A recorded configuration with the paths at which the folders are now.

    typed: the configuration as recorded, which `as_dict` returns, so that the digest doesn't change with the paths.
    """

    typed: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the configuration as recorded, as nested dictionaries."""
        return copy.deepcopy(self.typed)


def located(config: RunConfig, paths: dict[str, str]) -> RunConfig:
    """Return a `LocatedConfig` of a configuration with other paths, by key. A path that is None stays None."""
    present = {key: paths.get(key, path) for key, path in paths_in(config).items()}
    return LocatedConfig(**vars(replaced(config, present)) | {"typed": config.as_dict()})


def paths_in(config: RunConfig) -> dict[str, str]:
    """Return the paths of a configuration by their keys, without those that are None."""
    paths = {"dataset.root": config.dataset.root, "dataset.path": config.dataset.path, "init_from": config.init_from}
    return {key: path for key, path in paths.items() if path is not None}


def paths_of(config: RunConfig, directory: Path) -> dict[str, str]:
    """Return, for a record, the absolute paths of a run's directory and of the folders that the run reads, by key."""
    paths = {key: os.path.abspath(path) for key, path in paths_in(config).items()}
    return {"directory": os.path.abspath(directory), **paths}


def type_error(key: str, value: object, error: OmegaConfBaseException) -> str:
    """Return the message, in one line, for a value that OmegaConf rejects: the key, the value, and the allowed values.

    error: OmegaConf's error, whose first line takes the place of the allowed values where these are not known.
    """
    first = str(error).splitlines()[0]
    if "is not a ListConfig" in first:
        return f"{key}={shown(value)} is not allowed: a list, as in [100,100]"
    if key in fields_by_key() and isinstance(error, ValidationError):
        return f"{key}={shown(value)} is not allowed: {fields_by_key()[key].metadata['allowed'].text}"
    if "could not be converted to Integer" in first:  # an element of a list, which is no key
        return f"{key}={shown(value)} is not allowed: a whole number"
    return f"{key}={shown(value)}: {first}"


def pop_options(arguments: list[str], *keys: str) -> tuple[dict[str, str | None], list[str]]:
    """Return the values, by key, of the arguments KEY=VALUE with one of these keys, and the remaining arguments.

    A key that is not among the arguments has the value None. Where a key is repeated, the last value counts.
    """
    options: dict[str, str | None] = dict.fromkeys(keys)
    remaining = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in keys:
            options[key] = value
        else:
            remaining.append(argument)
    return options, remaining
