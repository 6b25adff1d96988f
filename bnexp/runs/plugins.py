"""Norms, activations, architectures, data sets, optimizers and initializations that installed packages add.

A package has an entry point for each, in the group of POINTS, as `switchable = "my_package.norms:SWITCHABLE"`, and the
file of that name in its folder conf/, as conf/norm/switchable.yaml. What an entry point names is imported once a
configuration chooses it.
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bnexp.runs.config import ConfigError, RunConfig, require_choice

POINTS = {  # group of configurations → group of entry points
    "norm": "bnexp.norms",
    "act": "bnexp.activations",
    "arch": "bnexp.archs",
    "dataset": "bnexp.datasets",
    "optim": "bnexp.optimizers",
    "init": "bnexp.inits",
}


@cache
def plugins(group: str) -> dict[str, list[EntryPoint]]:
    """Return the entry points of a group, as norm, by name: one each, or more where packages use the same name."""
    points: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=POINTS[group]):
        points.setdefault(point.name, []).append(point)
    return points


def find_entry(group: str, name: str, shipped: Mapping[str, Any]) -> Any:
    """Return the entry of a group: one of bnexp's own, `shipped`, or what a plugin's entry point names.

    Raises ConfigError for an unknown name, one that several have, and a plugin that can't be imported.
    """
    points = plugins(group).get(name, [])
    owners = [*(["bnexp"] if name in shipped else []), *map(package_of, points)]
    if len(owners) > 1:
        raise ConfigError(f"{group}={name} is ambiguous: {' and '.join(owners)} have it: uninstall what is not meant")
    require_choice(group, name, [*shipped, *sorted(plugins(group).keys() - shipped.keys())])
    return load(points[0], group) if points else shipped[name]


@cache
def load(point: EntryPoint, group: str) -> Any:
    """Import what an entry point names. Raises ConfigError for any error of the import."""
    try:
        return point.load()
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{group}={point.name} of {package_of(point)} cannot be imported: {why}") from error


def package_of(point: EntryPoint) -> str:
    """Return the distribution of an entry point and its version, as text."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def plugins_of(config: RunConfig) -> dict[str, str]:
    """Return the plugins that a configuration chooses: group → distribution and version."""
    chosen = {group: plugins(group).get(getattr(config, group).name) for group in POINTS}
    return {group: package_of(points[0]) for group, points in chosen.items() if points}


@cache
def plugin_places() -> list[Path]:
    """Return the folders of the packages, and the files of the modules, that have plugins, without importing them."""
    points = [point for group in POINTS for named in plugins(group).values() for point in named]
    specs = (find_spec(name) for name in dict.fromkeys(point.module.partition(".")[0] for point in points))
    return [Path(place) for spec in specs if spec for place in spec.submodule_search_locations or [str(spec.origin)]]


def plugin_configurations() -> list[Path]:
    """Return the folders conf/ of plugins."""
    return [folder / "conf" for folder in plugin_places() if (folder / "conf").is_dir()]
