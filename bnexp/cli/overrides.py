"""Overrides by Hydra's grammar: which are allowed, and which values a sweep gives them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, QuotedString, Transformer

from bnexp.runs.config import GROUPS, ConfigError, known_keys, whole_number_keys

USABLE = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.verbose")


INSTEAD = {  # of Hydra's keys, those of its launchers and sweepers, which bnexp has executors for
    "hydra/launcher": "executor=processes, inline or slurm",
    "hydra.launcher.workers": "executor.workers",
    "hydra.launcher.max_stack": "executor.max_stack",
    "hydra.launcher.submit": "executor=slurm",
    "hydra.launcher.submit_with": "executor.timeout_min, executor.partition and executor.parameters of executor=slurm",
    "hydra.launcher": "the keys of executor=…",
    "hydra.job": f"{', '.join(USABLE)}",
}


def conf_dir() -> Path:
    """The folder conf/: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    return next(path for path in (package.parent / "conf", package / "conf") if (path / "config.yaml").exists())


@dataclass(frozen=True)
class Setting:
    """One KEY=VALUE of a job: its text as Hydra reads it, its key and its parsed value."""

    text: str
    key: str
    value: Any

    @property
    def is_run(self) -> bool:
        """Whether it belongs to the run: neither to Hydra nor to the executor."""
        return re.match(r"\+*(hydra|executor)(?![\w-])", self.key) is None

    @property
    def is_choice(self) -> bool:
        """Whether it chooses a file of one of our groups, and does nothing else."""
        return self.key in (*GROUPS, "executor") and self.key != "experiment" and isinstance(self.value, str)

    @property
    def is_set_afterwards(self) -> bool:
        """Whether it gives a value to a key of Hydra's or the executor's, on which nothing else depends."""
        key = self.key.lstrip("+")
        return key in USABLE or key.startswith("executor.")

    @property
    def is_value(self) -> bool:
        """Whether it gives a value to a key, and does nothing else."""
        plain = not isinstance(self.value, dict) and "${" not in self.text
        return plain and self.key in known_keys() and self.key not in GROUPS


def parse_overrides(overrides: list[str]) -> list[Override]:
    """The overrides by Hydra's grammar. Raises ConfigError for one that is not allowed."""
    parser = OverridesParser.create()
    parsed = parser.parse_overrides(overrides)
    for override in parsed:
        check_override(override)
    return parsed


def check_override(override: Override) -> None:
    """Refuse what Hydra would allow but a run cannot have. Raises ConfigError."""
    line, key = override.input_line, override.key_or_group
    if not key:
        raise ConfigError(f"{line} cannot be read: an override is KEY=VALUE")
    if override.is_delete():
        raise ConfigError(f"{line} is not allowed: a key can be changed, not deleted")
    if key in GROUPS and any(isinstance(value, list) for value in values_of(override)):
        raise ConfigError(
            f"{line} is not allowed: a choice is one name; a sweep over several is {key}=none,batch with -m"
        )
    if group := renamed_group(override):
        raise ConfigError(f"{line} is not allowed: the name of a choice is fixed, {group}=NAME makes another choice")
    if override.is_hydra_override() and key not in USABLE:
        instead = next((new for old, new in INSTEAD.items() if is_under(key, old)), ", ".join(USABLE))
        raise ConfigError(f"{line} is not allowed: use {instead}")
    once = override.is_hydra_override() or is_under(key, "executor")
    if once and override.is_sweep_override():
        raise ConfigError(f"{line} is not allowed: {key} has one value in a sweep")


def is_under(key: str, name: str) -> bool:
    """Whether a key is this one, or one of its parts."""
    return key == name or key.startswith(f"{name}.")


def values_of(override: Override) -> Iterator[object]:
    """Its value, or those of a sweep."""
    return override.sweep_iterator() if is_enumerable(override) else iter([override.value()])


def is_enumerable(override: Override) -> bool:
    """Whether it lists the values of a sweep; which those of glob(…) are depends on the files that are there."""
    return override.is_discrete_sweep() and not isinstance(override.value(), Glob)


def renamed_group(override: Override) -> str | None:
    """The group whose choice would get another name by this override, so that norm=batch could train layer norm."""
    group, _, part = override.key_or_group.partition(".")
    if group not in (*GROUPS, "executor"):
        return None
    tables = (value for value in values_of(override) if isinstance(value, dict) and not part)
    return group if part == "name" or any("name" in map(str, table) for table in tables) else None


def single(override: Override) -> Setting:
    """An override that has one value, as it was typed. Raises ConfigError for a sweep."""
    key = override.get_key_element()
    if override.is_sweep_override():
        raise ConfigError(f"{override.input_line} lists several values: add -m for a sweep, or use bnexp compare")
    return setting_of(key, str(override.input_line), override.value())


def setting_of(key: str, text: str, value: Any) -> Setting:
    """One value of a key; 1e3 is 1000 where a whole number belongs."""
    if key in whole_number_keys() and isinstance(value, float) and value.is_integer():
        return Setting(f"{key}={int(value)}", key, int(value))
    return Setting(text, key, value)


def settings_of(override: Override, folder: str | None) -> list[Setting]:
    """The values of one override: one, or those of a sweep, in Hydra's order and notation.

    `folder`: the user's, whose files glob(…) finds too. Raises ConfigError for a sweep that cannot be enumerated.
    """
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [setting_of(key, f"{key}={override.get_value_element_as_str()}", override.value())]
    swept = override.value()
    if isinstance(swept, Glob):
        return [Setting(f"{key}={name}", key, name) for name in swept.filter(group_options(key, folder))]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line} is not allowed: a sweep lists its values, as {key}=1,2 or range(3)")
    elements = list(override.sweep_iterator())
    return [setting_of(key, f"{key}={Transformer.str(element)}", plain(element)) for element in elements]


def plain(element: Any) -> Any:
    """A parsed element without Hydra's marks of quotes."""
    if isinstance(element, QuotedString):
        return element.text
    if isinstance(element, list):
        return [plain(part) for part in element]
    return {plain(key): plain(part) for key, part in element.items()} if isinstance(element, dict) else element


def group_options(group: str, folder: str | None) -> list[str]:
    """The names of a group's files, the user's included."""
    options = {*GlobalHydra.instance().config_loader().get_group_options(group)}
    for place in (conf_dir(), *([Path(folder)] if folder else [])):
        options |= {path.stem for path in (place / group).glob("*.y*ml")}
    return sorted(options)
