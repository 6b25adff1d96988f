"""Configurations as Hydra composes them from conf/ and a command's overrides, typed and range-checked.

Hydra composes once for each choice of files, through its public API. The values of single keys are checked once each
and set on copies of the typed configuration: a sweep of thousands of jobs is planned in seconds.
"""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from bnexp.cli.errors import explain, unknown_choice, unknown_key
from bnexp.cli.overrides import USABLE, Setting, conf_dir, group_options, is_under, parse_overrides, single
from bnexp.runs.config import GROUPS, ConfigError, RunConfig
from bnexp.runs.directory import dotted
from bnexp.runs.parse import parse, typed_value, with_values
from bnexp.sweeps.job import HydraRecord

LONGEST_SHOWN = 100  # characters of an override in a message


@contextmanager
def naming_overrides(overrides: list[str]) -> Iterator[None]:
    """Whatever is raised inside becomes a ConfigError that names one of the overrides."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # OmegaConf's, of a file that is no table, has none
            raise
        text = "nested too deeply" if isinstance(error, RecursionError) else explain(error)[1]
        keys = [word.lstrip("+~").split("=")[0].split("@")[0] for word in overrides]
        line = text.split(", did you mean")[0]
        named = any(key and re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", line) for key in keys)
        raise ConfigError(text if named else f"{abridged(overrides)}: {text}") from error


def abridged(overrides: list[str]) -> str:
    """The overrides in a line, the long ones shortened."""
    return " ".join(word if len(word) <= LONGEST_SHOWN else f"{word[:LONGEST_SHOWN]}…" for word in overrides)


@dataclass(frozen=True)
class Composition:
    """What Hydra composed of one choice of files: everything, and the typed configuration of a run."""

    whole: DictConfig
    run: RunConfig

    @cached_property
    def values(self) -> dict[str, Any]:
        """The run's part, its interpolations unresolved."""
        values: Any = OmegaConf.to_container(run_part(self.whole), resolve=False)
        return dict(values)

    @cached_property
    def keys(self) -> set[str]:
        """The keys that these files have: norm.eps, seed, …"""
        return {*dotted(self.values)}

    @cached_property
    def record(self) -> HydraRecord:
        """For the folder .hydra/ of its runs."""
        settings: Any = OmegaConf.to_container(self.whole.hydra, resolve=False, enum_to_str=True)
        return HydraRecord(self.values, settings)

    @property
    def executor(self) -> dict[str, Any]:
        """The executor's part."""
        values: Any = OmegaConf.to_container(self.whole.executor, resolve=True)
        return dict(values)

    def directory(self, key: str, name: str) -> Path:
        """`hydra.run.dir` or `hydra.sweep.dir`, resolved; `name` is what ${hydra:job.override_dirname} stands for."""
        whole = editable(self.whole)
        whole.hydra.job.override_dirname = name
        HydraConfig.instance().set_config(whole)
        return Path(OmegaConf.select(whole, key))


def editable(whole: DictConfig) -> DictConfig:
    """A copy of a composition, without Hydra's locks on it."""
    found = copy.deepcopy(whole)
    OmegaConf.set_readonly(found.hydra, False)
    return found


def run_part(whole: DictConfig) -> DictConfig:
    """The run's part of a composition: without Hydra's and the executor's."""
    return OmegaConf.masked_copy(whole, [str(key) for key in whole if key not in ("hydra", "executor")])


_shipped: dict[tuple[str, ...], Composition] = {}  # compositions of conf/ alone, which doesn't change under a process


@contextmanager
def configurations(folder: str | None = None, name: str = "config") -> Iterator["Composer"]:
    """What composes from conf/ and, behind it, from a folder of the user's, as --config-dir has it.

    Where the primary configuration is the user's, their folder comes first: Hydra looks for it there alone.
    """
    ours, theirs = str(conf_dir()), folder and str(Path(folder).absolute())
    plain_hydra = flat(shipped_composition().whole.hydra) if theirs else {}
    first = theirs and any(Path(theirs, f"{name}{end}").exists() for end in (".yaml", ".yml")) and name != "config"
    main, other = (theirs, ours) if first else (ours, theirs)
    with hydra.initialize_config_dir(str(main), job_name="bnexp", version_base="1.3"):
        search = [f"hydra.searchpath=['file://{escaped(other)}']"] if other else []
        yield Composer(name, folder, search, plain_hydra)


def shipped_composition() -> Composition:
    """What Hydra composes of conf/ without any override."""
    with configurations() as composer:
        return composer.composed(())


def escaped(path: str) -> str:
    """A path inside single quotes of Hydra's grammar."""
    return path.replace("\\", "\\\\").replace("'", "\\'")


class Composer:
    """Composes the jobs of one command. `search`: the override that names the folder Hydra reads besides;
    `plain_hydra`: Hydra's own part without the user's files.
    """

    def __init__(self, name: str, folder: str | None, search: list[str], plain_hydra: dict[str, object]) -> None:
        self.name, self.folder, self.search, self.plain_hydra = name, folder, search, plain_hydra
        self.compositions: dict[tuple[str, ...], Composition] = _shipped if not search and name == "config" else {}
        self.adjustments: dict[tuple[str, ...], Composition] = {}
        self.checked: dict[str, Any] = {}  # the text of a setting → its typed value
        self.by_parts = False

    def prepare(self, rows: list[list[Setting]]) -> None:
        """Decide how choices are composed: all of a job's at once, or each once, where there are fewer of these."""
        combinations = {tuple(setting.text for setting in row if setting.is_choice) for row in rows}
        self.by_parts = len(combinations) > 1 + len({text for texts in combinations for text in texts})

    def compose_run(self, overrides: list[str]) -> RunConfig:
        """The configuration of one run. Raises ConfigError."""
        with naming_overrides(overrides):
            return self.compose_job([single(override) for override in parse_overrides(overrides)])[0]

    def compose_job(self, settings: list[Setting]) -> tuple[RunConfig, Composition, dict[str, Any]]:
        """A job's configuration, what Hydra composed for it, and the values that are to be set there.

        Raises ConfigError or what `explain` says in a line.
        """
        fixed, choices, values = divided([setting for setting in settings if not setting.is_set_afterwards])
        try:
            found = self.adjusted(self.combined(fixed, choices), [s for s in settings if s.is_set_afterwards])
            if "${" not in str(found.values):
                return self.with_settings(found, values), found, {setting.key: setting.value for setting in values}
        except ConfigError:
            if not values:
                raise
        found = self.composed(tuple(setting.text for setting in settings))  # values that depend on one another, say
        return found.run, found, {}

    def with_settings(self, composition: Composition, settings: list[Setting]) -> RunConfig:
        """The composed run with these values. Raises ConfigError."""
        for setting in settings:
            if setting.key not in composition.keys:
                raise ConfigError(unknown_key(setting.key))
            if setting.text not in self.checked:
                self.checked[setting.text] = typed_value(setting.key, setting.value)
        return with_values(composition.run, {setting.key: self.checked[setting.text] for setting in settings})

    def combined(self, fixed: tuple[str, ...], choices: list[Setting]) -> Composition:
        """What Hydra composes of some choices. For many of them, it is put together from the compositions of single
        choices, where each changes its own group alone.
        """
        last = {setting.key: setting for setting in choices}
        texts = tuple(setting.text for setting in last.values())
        if len(last) < 2 or not self.by_parts:
            return self.composed((*fixed, *texts))
        base, parts = self.composed(fixed), {key: self.composed((*fixed, s.text)) for key, s in last.items()}
        if any(differs_elsewhere(part, base, group) for group, part in parts.items()):
            return self.composed((*fixed, *texts))
        key = ("combined", *fixed, *texts)
        if key not in self.compositions:
            whole = editable(base.whole)
            for group, part in parts.items():
                whole[group] = copy.deepcopy(part.whole[group])
                whole.hydra.runtime.choices[group] = last[group].value
            groups = {group: getattr(part.run, group) for group, part in parts.items() if group != "executor"}
            run = replace(base.run, **groups)
            self.compositions[key] = Composition(whole, run)
        return self.compositions[key]

    def adjusted(self, composition: Composition, settings: list[Setting]) -> Composition:
        """A composition with values for keys of Hydra's and the executor's. Raises ConfigError."""
        key = (str(id(composition)), *(setting.text for setting in settings))
        if settings and key not in self.adjustments:
            whole = editable(composition.whole)
            for name, setting in ((setting.key.lstrip("+"), setting) for setting in settings):
                group, _, rest = name.partition(".")
                if group == "executor" and rest.partition(".")[0] not in whole.executor:
                    raise ConfigError(unknown_key(name))
                OmegaConf.update(whole, name, setting.value, force_add=rest.startswith("parameters."))
            whole.hydra.overrides.hydra = [setting.text for setting in settings if not setting.text.startswith("exec")]
            self.adjustments[key] = replace(composition, whole=whole)
        return self.adjustments[key] if settings else composition

    def composed(self, overrides: tuple[str, ...]) -> Composition:
        """What Hydra composes of these overrides."""
        if overrides in self.compositions:
            return self.compositions[overrides]
        for text in overrides:
            self.check_choice(text)
        whole = hydra.compose(self.name, [*overrides, *self.search], return_hydra_config=True)
        if self.search:
            check_files(whole, self.plain_hydra)
        HydraConfig.instance().set_config(whole)  # which ${hydra:…} asks
        composition = Composition(whole, parse(run_part(whole)))
        check_names(composition)
        if "${" not in "".join(overrides):  # which may ask for the directory, say
            self.compositions[overrides] = composition
        return composition

    def check_choice(self, text: str) -> None:
        """Refuse the path of a file in the place of a group's choice. Raises ConfigError."""
        key, _, choice = text.lstrip("+").partition("=")
        group = key.partition("@")[0]
        if "/" in choice and (options := group_options(group, self.folder)):
            raise ConfigError(unknown_choice(key, choice, options))


def divided(settings: list[Setting]) -> tuple[tuple[str, ...], list[Setting], list[Setting]]:
    """What Hydra has to compose whatever the job, the choices of files, and the values of keys.

    Overrides act in their order: values in front of a table ({lr: 1}) or an added key are Hydra's too.
    """
    odd = [n for n, s in enumerate(settings) if s.is_run and not (s.is_choice or s.is_value or s.key == "experiment")]
    first = odd[-1] + 1 if odd else 0
    values = [setting for number, setting in enumerate(settings) if setting.is_value and number >= first]
    choices = [setting for setting in settings if setting.is_choice] if not odd else []
    fixed = [setting.text for setting in settings if setting not in values and setting not in choices]
    return tuple(fixed), choices, values


def differs_elsewhere(part: Composition, base: Composition, group: str) -> bool:
    """Whether a choice changes anything but its own group."""
    return {**part.values, group: None} != {**base.values, group: None}


@cache
def shipped_names(group: str) -> frozenset[str]:
    """The names of the files of a group in conf/."""
    return frozenset(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def check_names(composition: Composition) -> None:
    """A file may rename a shipped choice no more than an override may. Raises ConfigError."""
    for group in GROUPS:
        choice = composition.whole.hydra.runtime.choices.get(group)
        name = OmegaConf.select(composition.whole, f"{group}.name")
        if name is not None and choice in shipped_names(group) and name != choice:
            raise ConfigError(f"{group}.name={name} is not allowed: {group}={choice} is chosen, whose name is {choice}")


FREE = ["run.dir", "sweep.dir", "sweep.subdir", "verbose", "help", "runtime", "overrides", "searchpath"]
FREE += ["job.override_dirname", "job.config_name"]


def check_files(whole: DictConfig, expected: dict[str, object]) -> None:
    """A user's file may set no more of Hydra's keys than an override may, and nothing of what submitit is given, which
    runs some of it in a shell. Raises ConfigError.
    """
    found = flat(whole.hydra)
    for key in found | expected:
        if found.get(key) != expected.get(key) and not any(is_under(key, name) for name in FREE):
            raise ConfigError(f"hydra.{key}={found.get(key)} is not allowed in a file: use {', '.join(USABLE)}")
    for key in flat(whole.executor):
        if key.startswith("parameters."):
            raise ConfigError(f"executor.{key} is not allowed in a file: what submitit is given has to be typed")


def flat(config: DictConfig) -> dict[str, object]:
    """Values, unresolved, by their dotted keys and places in lists."""
    return dict(leaves(OmegaConf.to_container(config, resolve=False), ""))


def leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    """The values inside tables and lists, with their paths; an empty one is its own value."""
    parts = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, part in parts:
        yield from leaves(part, f"{path}.{key}" if path else str(key))
    if not parts:
        yield path, value
