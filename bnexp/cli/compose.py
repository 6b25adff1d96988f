"""Configurations as Hydra composes them from conf/ and a command's overrides, typed and range-checked.

Hydra composes once for each choice of files, through its public API. Each value of a single key is checked once, and
set on copies of the typed configuration, so that a sweep of thousands of jobs is planned in seconds.
"""

import copy
import os
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
    """Turn every error of the block into a ConfigError that names one of the overrides."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # OmegaConf's, of a file that is no table, has none
            raise
        text = "nested too deeply" if isinstance(error, RecursionError) else explain(error)[1]
        keys = [override.lstrip("+~").split("=")[0].split("@")[0] for override in overrides]
        line = text.split(", did you mean")[0]
        named = any(key and re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", line) for key in keys)
        raise ConfigError(text if named else f"{abridged(overrides)}: {text}") from error


def abridged(overrides: list[str]) -> str:
    """Return overrides in a line, with long ones abbreviated."""
    return " ".join(text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…" for text in overrides)


@dataclass(frozen=True)
class Composition:
    """What Hydra composed from one choice of files: the whole configuration, and the typed one of a run."""

    whole: DictConfig
    run: RunConfig

    @cached_property
    def values(self) -> dict[str, Any]:
        """The run's part as a table, with unresolved interpolations."""
        values: Any = OmegaConf.to_container(run_part(self.whole), resolve=False)
        return dict(values)

    @cached_property
    def has_references(self) -> bool:
        """Whether a value refers to another one by ${…}: then values can't be set one by one."""
        return re.search(r"\$\{(?!oc\.env:)", str(self.values)) is not None

    @cached_property
    def keys(self) -> set[str]:
        """The keys of these files: norm.eps, seed, …"""
        return {*dotted(self.values)}

    @cached_property
    def record(self) -> HydraRecord:
        """What its runs record in their folders .hydra/."""
        settings: Any = OmegaConf.to_container(self.whole.hydra, resolve=False, enum_to_str=True)
        return HydraRecord(self.values, settings)

    @property
    def executor(self) -> dict[str, Any]:
        """The executor's part as a table."""
        values: Any = OmegaConf.to_container(self.whole.executor, resolve=True)
        return dict(values)

    def directory(self, key: str, name: str) -> Path:
        """Return the path of `hydra.run.dir` or `hydra.sweep.dir`; ${hydra:job.override_dirname} becomes `name`."""
        whole = editable(self.whole)
        whole.hydra.job.override_dirname = name
        HydraConfig.instance().set_config(whole)
        return Path(OmegaConf.select(whole, key))


def editable(whole: DictConfig) -> DictConfig:
    """Return a copy of a composition that can be changed."""
    copied = copy.deepcopy(whole)
    OmegaConf.set_readonly(copied.hydra, False)
    return copied


def run_part(whole: DictConfig) -> DictConfig:
    """Return the run's part of a composition, without those of Hydra and of the executor."""
    return OmegaConf.masked_copy(whole, [str(key) for key in whole if key not in ("hydra", "executor")])


_shipped: dict[str | None, dict[tuple[str, ...], Composition]] = {}  # of conf/ alone, by $BNEXP_DATA


@contextmanager
def configurations(folder: str | None = None, name: str = "config") -> Iterator["Composer"]:
    """Yield a composer of configurations from conf/ and then from the user's folder (--config-dir).

    The user's folder comes first where it holds the primary configuration, which Hydra looks up in the first one only.
    """
    ours, theirs = str(conf_dir()), folder and str(Path(folder).absolute())
    plain_hydra = flat(shipped_composition().whole.hydra) if theirs else {}
    first = theirs and any(Path(theirs, f"{name}{end}").exists() for end in (".yaml", ".yml")) and name != "config"
    main, other = (theirs, ours) if first else (ours, theirs)
    with hydra.initialize_config_dir(str(main), job_name="bnexp", version_base="1.3"):
        search = [f"hydra.searchpath=['file://{escaped(other)}']"] if other else []
        yield Composer(name, folder, search, plain_hydra)


def shipped_composition() -> Composition:
    """Return what Hydra composes from conf/ without overrides."""
    with configurations() as composer:
        return composer.composed(())


def escaped(path: str) -> str:
    """Escape a path for single quotes in Hydra's grammar."""
    return path.replace("\\", "\\\\").replace("'", "\\'")


class Composer:
    """Composes the configurations of the jobs of one command, and shares compositions among them.

    name: the primary configuration. folder: the user's --config-dir, if any. search: the override of hydra.searchpath
    that adds the other of conf/ and that folder, or nothing. plain_hydra: the settings under `hydra` as conf/ alone
    gives them, to detect what the user's files change.
    """

    def __init__(self, name: str, folder: str | None, search: list[str], plain_hydra: dict[str, object]) -> None:
        self.name, self.folder, self.search, self.plain_hydra = name, folder, search, plain_hydra
        shared = _shipped.setdefault(os.environ.get("BNEXP_DATA"), {})  # which conf/ asks for
        self.compositions: dict[tuple[str, ...], Composition] = shared if not search and name == "config" else {}
        self.adjustments: dict[tuple[str, ...], Composition] = {}
        self.checked: dict[str, Any] = {}  # the text of a setting → its typed value
        self.by_parts = False

    def prepare(self, rows: list[list[Setting]]) -> None:
        """Decide whether the choices of a job are composed together, or one by one and then combined.

        The second way is taken where it needs fewer compositions for all jobs.
        """
        combinations = {tuple(setting.text for setting in row if setting.is_choice) for row in rows}
        self.by_parts = len(combinations) > 1 + len({text for texts in combinations for text in texts})

    def compose_run(self, overrides: list[str]) -> RunConfig:
        """Return the configuration of one run. Raises ConfigError."""
        with naming_overrides(overrides):
            return self.compose_job([single(override) for override in parse_overrides(overrides)])[0]

    def compose_job(self, settings: list[Setting]) -> tuple[RunConfig, Composition, dict[str, Any]]:
        """Return a job's configuration, what Hydra composed for it, and the values that are to be set in the latter.

        Raises ConfigError and errors of Hydra and OmegaConf.
        """
        afterwards = [setting for setting in settings if setting.is_set_afterwards]
        settings = [setting for setting in settings if not setting.is_set_afterwards]
        fixed, choices, values = divided(settings)
        try:
            composition = self.combined(fixed, choices)
            if not composition.has_references:
                run = self.with_settings(composition, values)
                values_to_set = {setting.key: setting.value for setting in values}
                return run, self.adjusted(composition, afterwards), values_to_set
        except ConfigError:
            if not values:
                raise
        # Hydra composes all of it, as for values that depend on one another
        composition = self.composed(tuple(setting.text for setting in settings))
        return composition.run, self.adjusted(composition, afterwards), {}

    def with_settings(self, composition: Composition, settings: list[Setting]) -> RunConfig:
        """Return the composed run with these values. Raises ConfigError."""
        for setting in settings:
            if setting.key not in composition.keys:
                raise ConfigError(unknown_key(setting.key))
            if setting.text not in self.checked:
                self.checked[setting.text] = typed_value(setting.key, setting.value)
        return with_values(composition.run, {setting.key: self.checked[setting.text] for setting in settings})

    def combined(self, fixed: tuple[str, ...], choices: list[Setting]) -> Composition:
        """Return what Hydra composes from these choices.

        By parts, the compositions of single choices are combined, provided that each changes only its own group.
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
        """Return a composition with these values of keys of Hydra and the executor. Raises ConfigError."""
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
        """Return what Hydra composes from these overrides, which is done once for each choice."""
        if overrides in self.compositions:
            return self.compositions[overrides]
        for text in overrides:
            self.check_choice(text)
        whole = hydra.compose(self.name, [*overrides, *self.search], return_hydra_config=True)
        if self.search:
            check_files(whole, self.plain_hydra)
        HydraConfig.instance().set_config(whole)  # ${hydra:…} reads it there
        composition = Composition(whole, parse(run_part(whole)))
        check_names(composition)
        if "${" not in "".join(overrides):  # an interpolation may depend on the directory, for example
            self.compositions[overrides] = composition
        return composition

    def check_choice(self, text: str) -> None:
        """Raise ConfigError where the choice of a group is the path of a file."""
        key, _, choice = text.lstrip("+").partition("=")
        group = key.partition("@")[0]
        if "/" in choice and (options := group_options(group, self.folder)):
            raise ConfigError(unknown_choice(key, choice, options))


def divided(settings: list[Setting]) -> tuple[tuple[str, ...], list[Setting], list[Setting]]:
    """Divide a job's settings into those that Hydra always composes, the choices of files, and the values of keys.

    Overrides apply in their order, so Hydra also composes the values before a table ({lr: 1}) or an added key.
    """
    by_hydra = [
        n for n, s in enumerate(settings) if s.is_run and not (s.is_choice or s.is_value or s.key == "experiment")
    ]
    first = by_hydra[-1] + 1 if by_hydra else 0
    values = [setting for number, setting in enumerate(settings) if setting.is_value and number >= first]
    choices = [setting for setting in settings if setting.is_choice] if not by_hydra else []
    fixed = [setting.text for setting in settings if setting not in values and setting not in choices]
    return tuple(fixed), choices, values


def differs_elsewhere(part: Composition, base: Composition, group: str) -> bool:
    """Whether a choice changes anything outside of its own group."""
    return {**part.values, group: None} != {**base.values, group: None}


@cache
def shipped_names(group: str) -> frozenset[str]:
    """Return the names of the files of a group in conf/."""
    return frozenset(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def check_names(composition: Composition) -> None:
    """Raise ConfigError where a user's file gives a choice of bnexp's another name."""
    for group in GROUPS:
        choice = composition.whole.hydra.runtime.choices.get(group)
        name = OmegaConf.select(composition.whole, f"{group}.name")
        if name is not None and choice in shipped_names(group) and name != choice:
            raise ConfigError(f"{group}.name={name} is not allowed: {group}={choice} is chosen, whose name is {choice}")


FREE = ["run.dir", "sweep.dir", "sweep.subdir", "verbose", "help", "runtime", "overrides", "searchpath"]
FREE += ["job.override_dirname", "job.config_name"]


def check_files(whole: DictConfig, expected: dict[str, object]) -> None:
    """Raise ConfigError where a user's file sets a key of Hydra that an override may not, or submitit's parameters.

    submitit executes some of its parameters in a shell, so they have to be typed as overrides.
    """
    values = flat(whole.hydra)
    for key in values | expected:
        if values.get(key) != expected.get(key) and not any(is_under(key, name) for name in FREE):
            raise ConfigError(f"hydra.{key}={values.get(key)} is not allowed in a file: use {', '.join(USABLE)}")
    for key in flat(whole.executor):
        if key.startswith("parameters."):
            raise ConfigError(f"executor.{key} is not allowed in a file: parameters of submitit have to be typed")


def flat(config: DictConfig) -> dict[str, object]:
    """Return the unresolved values by their dotted keys, with indices in lists."""
    return dict(leaves(OmegaConf.to_container(config, resolve=False), ""))


def leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield the values inside tables and lists with their dotted paths; an empty table or list is itself a value."""
    parts = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for key, part in parts:
        yield from leaves(part, f"{path}.{key}" if path else str(key))
    if not parts:
        yield path, value
