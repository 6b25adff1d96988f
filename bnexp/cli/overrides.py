"""Overrides in Hydra's grammar: check which are allowed, and list their values in a sweep."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, QuotedString, Transformer

from bnexp.runs.config import GROUPS, ConfigError, known_keys, whole_number_keys
from bnexp.runs.plugins import plugin_configurations
from bnexp.sweeps.executor_config import EXECUTOR_KEYS

USABLE = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.verbose")

INSTEAD = {  # a key of Hydra that is not allowed → what to use instead
    "hydra/launcher": f"executor={' or '.join(EXECUTOR_KEYS)}",
    "hydra.launcher.workers": "executor.workers",
    "hydra.launcher.max_stack": "executor.max_stack",
    "hydra.launcher.submit": "executor=slurm",
    "hydra.launcher.submit_with": "executor.timeout_min, executor.partition and other keys of executor=slurm",
    "hydra.launcher": "the keys of executor=…",
}


def conf_dir() -> Path:
    """Return the folder conf/, which is next to the package in a checkout, and inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    return next(path for path in (package.parent / "conf", package / "conf") if (path / "config.yaml").exists())


@dataclass(frozen=True)
class Setting:
    """One KEY=VALUE of a job: its text in Hydra's grammar, its key, and its value as parsed by Hydra."""

    text: str
    key: str
    value: Any

    @property
    def is_run(self) -> bool:
        """Whether it sets a key of the run, not of Hydra or the executor."""
        return re.match(r"\+*(hydra|executor)(?![\w-])", self.key) is None

    @property
    def is_choice(self) -> bool:
        """Whether it chooses a file of a group, as norm=batch does. The group experiment does not count."""
        return self.key in (*GROUPS, "executor") and self.key != "experiment" and isinstance(self.value, str)

    @property
    def is_set_afterwards(self) -> bool:
        """Whether it sets a key of Hydra or the executor on which no other value depends: it is set after composing."""
        key = self.key.lstrip("+")
        return key in USABLE or key.startswith("executor.")

    @property
    def is_value(self) -> bool:
        """Whether it sets a known key of the run to a value that is no dictionary and has no interpolation."""
        is_plain = not isinstance(self.value, dict) and "${" not in self.text
        return is_plain and self.key in known_keys() and self.key not in GROUPS


def parse_overrides(overrides: list[str]) -> list[Override]:
    """Parse overrides with Hydra's grammar.

    Raises ConfigError for one that is not allowed, and Hydra's error for one that is not in this grammar.
    """
    parsed = OverridesParser.create().parse_overrides(overrides)
    for override in parsed:
        check_override(override)
    return parsed


def check_override(override: Override) -> None:
    """Raise ConfigError for an override that Hydra accepts but bnexp does not, as one that deletes a key."""
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
    """Return whether a key equals `name` or begins with it and a dot."""
    return key == name or key.startswith(f"{name}.")


def values_of(override: Override) -> Iterator[object]:
    """Yield the single value of an override, or each value that it lists for a sweep.

    What can't be enumerated is yielded as Hydra's object, as glob(…), whose values depend on the existing files.
    """
    listed = override.is_discrete_sweep() and not isinstance(override.value(), Glob)
    return override.sweep_iterator() if listed else iter([override.value()])


def renamed_group(override: Override) -> str | None:
    """Return the group whose key `name` an override sets, else None.

    Such an override is not allowed: with it, norm=batch could train layer norm.
    """
    group, _, part = override.key_or_group.partition(".")
    if group not in (*GROUPS, "executor"):
        return None
    tables = (value for value in values_of(override) if isinstance(value, dict) and not part)
    return group if part == "name" or any("name" in map(str, table) for table in tables) else None


def single(override: Override) -> Setting:
    """Return the setting (`setting_of`) of an override as typed. Raises ConfigError for a sweep, also of one value."""
    key = override.get_key_element()
    if override.is_sweep_override():
        raise ConfigError(f"{override.input_line} lists several values: add -m for a sweep, or use bnexp compare")
    return setting_of(key, str(override.input_line), override.value())


def setting_of(key: str, text: str, value: Any) -> Setting:
    """Make a setting. For a key that takes whole numbers, a value such as 1e3 becomes 1000, in its text too."""
    if key in whole_number_keys() and isinstance(value, float) and value.is_integer():
        return Setting(f"{key}={int(value)}", key, int(value))
    return Setting(text, key, value)


def settings_of(override: Override, folder: str | None) -> list[Setting]:
    """Return the settings of an override, in Hydra's order and notation: one for each of its values.

    folder: the user's folder of configurations, whose files glob(…) matches, too. Raises ConfigError for a sweep that
    cannot be enumerated, such as interval(0,1).
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


def split_jobs(overrides: list[Override], folder: str | None) -> list[list[Setting]]:
    """Return the settings of every job of a sweep: the product of the listed values, the last key changing fastest.

    folder: the user's folder of configurations, if any. Raises ConfigError for an empty sweep, for equal jobs, and
    as `settings_of` does.
    """
    rows = [list(row) for row in product(*(settings_of(override, folder) for override in overrides))]
    line = " ".join(str(override.input_line) for override in overrides if override.is_sweep_override())
    if not rows:
        raise ConfigError(f"{line} is an empty sweep: give each key a value at least")
    [(texts, times)] = Counter(tuple(setting.text for setting in row) for row in rows).most_common(1)
    if times > 1:
        raise ConfigError(f"{line} has the same run more than once: {' '.join(texts)}")
    return rows


def plain(element: Any) -> Any:
    """Convert the quoted strings of Hydra's parser to plain ones, also inside lists and dictionaries."""
    if isinstance(element, QuotedString):
        return element.text
    if isinstance(element, list):
        return [plain(part) for part in element]
    return {plain(key): plain(part) for key, part in element.items()} if isinstance(element, dict) else element


def group_options(group: str, folder: str | None) -> list[str]:
    """Return the sorted names of a group's files: conf/, plugins, the user's folder. Hydra has to be initialized."""
    options = {*GlobalHydra.instance().config_loader().get_group_options(group)}
    for root in (conf_dir(), *plugin_configurations(), *([Path(folder)] if folder else [])):
        options |= {path.stem for path in (root / group).glob("*.y*ml")}
    return sorted(options)
