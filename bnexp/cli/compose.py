"""Compose configurations with Hydra from conf/ and a command's overrides, and make them typed and range-checked.

As a rule, Hydra composes once for each combination of configuration files that the overrides choose, through its public
API. Each value of a single key is checked once, and set on copies of the typed configuration, so that a sweep of
thousands of jobs is planned in seconds.
"""

import copy
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from bnexp.cli.errors import explain, unknown_choice, unknown_key
from bnexp.cli.overrides import USABLE, Setting, conf_dir, group_options, is_under, parse_overrides, single
from bnexp.runs.config import GROUPS, ConfigError, RunConfig, shown
from bnexp.runs.directory import dotted
from bnexp.runs.parse import parse, typed_value, with_values
from bnexp.runs.plugins import plugin_configurations
from bnexp.sweeps.job import HydraRecord


@contextmanager
def naming_overrides(overrides: list[str]) -> Iterator[None]:
    """Turn errors of the `with` body into a ConfigError that names a key of the overrides, or else all overrides.

    An OSError of the operating system is raised unchanged.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # OmegaConf's for an invalid file has no number
            raise
        text = "nested too deeply" if isinstance(error, RecursionError) else explain(error)[1]
        keys = [override.lstrip("+~").split("=")[0].split("@")[0] for override in overrides]
        line = text.split(", did you mean")[0]
        named = any(key and re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", line) for key in keys)
        raise ConfigError(text if named else f"{' '.join(map(shown, overrides))}: {text}") from error


@dataclass(frozen=True, eq=False)
class Composition:
    """The result of Hydra for one combination of configuration files. It is compared by identity.

    whole: the entire configuration, with its parts `hydra` and `executor`. run: the typed configuration of a run.
    """

    whole: DictConfig
    run: RunConfig

    @cached_property
    def values(self) -> dict[str, Any]:
        """The run's part of the configuration as nested dictionaries, with unresolved interpolations."""
        return as_dict(run_part(self.whole))

    @cached_property
    def has_references(self) -> bool:
        """Whether the run's part has an interpolation ${…} other than ${oc.env:…}, which reads an environment variable.

        Since a value may then depend on another one, values can't be set one by one.
        """
        return re.search(r"\$\{(?!oc\.env:)", str(self.values)) is not None

    @cached_property
    def keys(self) -> set[str]:
        """The dotted keys of the run's part: norm.eps, seed, …"""
        return {*dotted(self.values)}

    @cached_property
    def record(self) -> HydraRecord:
        """The record of Hydra's configuration that each run of this composition writes to its folder .hydra/."""
        return HydraRecord(self.values, as_dict(self.whole.hydra))

    @property
    def executor(self) -> dict[str, Any]:
        """The executor's part of the configuration as a dictionary, with resolved interpolations."""
        return as_dict(self.whole.executor, resolve=True)

    def directory(self, key: str, name: str) -> Path:
        """Return the path in `hydra.run.dir` or `hydra.sweep.dir` (the key), with `name` as the job's override_dirname.

        This sets Hydra's global HydraConfig, from which ${hydra:…} is resolved.
        """
        whole = editable(self.whole)
        whole.hydra.job.override_dirname = name
        HydraConfig.instance().set_config(whole)
        return Path(OmegaConf.select(whole, key))


def as_dict(config: DictConfig, resolve: bool = False) -> dict[str, Any]:
    """Return a configuration as nested dictionaries. resolve: whether its interpolations are resolved."""
    values: Any = OmegaConf.to_container(config, resolve=resolve, enum_to_str=True)
    return dict(values)


def editable(whole: DictConfig) -> DictConfig:
    """Return a deep copy of a composed configuration whose part `hydra` is not read-only."""
    copied = copy.deepcopy(whole)
    OmegaConf.set_readonly(copied.hydra, False)
    return copied


def run_part(whole: DictConfig) -> DictConfig:
    """Return the run's part of a composed configuration: everything except `hydra` and `executor`."""
    return OmegaConf.masked_copy(whole, [str(key) for key in whole if key not in ("hydra", "executor")])


# compositions without a user's files, by $BNEXP_DATA and the search path of plugins
_shipped: dict[tuple[str | None, ...], dict[tuple[str, ...], Composition]] = {}


@contextmanager
def configurations(folder: str | None = None, name: str = "config", with_plugins: bool = True) -> Iterator["Composer"]:
    """Initialize Hydra, and yield a composer of configurations from conf/, from plugins and from the user's folder.

    folder: the user's folder (--config-dir), if any. name: the primary configuration, which Hydra looks up in the first
    folder only. The first folder is conf/, except where the user's folder holds the primary configuration under a name
    other than "config".
    """
    ours, theirs = str(conf_dir()), folder and str(Path(folder).absolute())
    first = theirs and any(Path(theirs, f"{name}{end}").exists() for end in (".yaml", ".yml")) and name != "config"
    main, other = (theirs, ours) if first else (ours, theirs)
    others = [*([other] if other else []), *(map(str, plugin_configurations()) if with_plugins else [])]
    plain_hydra = flat(as_dict(shipped_composition().whole.hydra)) if others else {}
    with hydra.initialize_config_dir(str(main), job_name="bnexp", version_base="1.3"):
        yield Composer(name, folder, searched(others), plain_hydra)


def searched(folders: list[str]) -> list[str]:
    """Return the override with which Hydra also looks in these folders; nothing where there is none."""
    quoted = [QuotedString(f"file://{folder}", Quote.single).with_quotes() for folder in folders]
    return [f"hydra.searchpath=[{','.join(quoted)}]"] if quoted else []


def shipped_composition() -> Composition:
    """Return the composition of conf/ alone, without overrides."""
    with configurations(with_plugins=False) as composer:
        return composer.composed(())


class Composer:
    """A composer of the configurations of a command's jobs, which share compositions.

    name: the primary configuration. folder: the user's --config-dir, if any. search: the override of hydra.searchpath
    that adds all folders but the first one (see `configurations`); empty without any. plain_hydra: the settings under
    `hydra` from conf/ alone, by dotted keys, with which changes by the files of others are detected; empty without any.
    """

    def __init__(self, name: str, folder: str | None, search: list[str], plain_hydra: dict[str, object]) -> None:
        self.name, self.folder, self.search, self.plain_hydra = name, folder, search, plain_hydra
        shared = _shipped.setdefault((os.environ.get("BNEXP_DATA"), *search), {})  # conf/ reads this variable
        own = folder is not None or name != "config"
        self.compositions: dict[tuple[str, ...], Composition] = {} if own else shared
        self.adjustments: dict[tuple[Composition, tuple[str, ...]], Composition] = {}  # with texts of settings
        self.checked: dict[str, Any] = {}  # the text of a setting → its typed value
        self.by_parts = False

    def prepare(self, rows: list[list[Setting]]) -> None:
        """Set `by_parts`: whether the choices of a job, as norm=batch, are composed one by one and then combined.

        It is set where this needs fewer compositions for all jobs than composing the choices of each job together.
        rows: the settings of each job.
        """
        combinations = {tuple(setting.text for setting in row if setting.is_choice) for row in rows}
        self.by_parts = len(combinations) > 1 + len({text for texts in combinations for text in texts})

    def compose_run(self, overrides: list[str]) -> RunConfig:
        """Return the configuration of one run. Raises ConfigError, also for an override that lists several values."""
        with naming_overrides(overrides):
            return self.compose_job([single(override) for override in parse_overrides(overrides)])[0]

    def compose_job(self, settings: list[Setting]) -> tuple[RunConfig, Composition, dict[str, Any]]:
        """Return a job's configuration, the composition that it was made from, and the values that were set in a copy.

        The configuration has these values, by their keys; the composition does not. For invalid settings, raises
        ConfigError and errors of Hydra and OmegaConf.
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
        """Return the composition's run with the values of these settings.

        Raises ConfigError for an unknown key and an invalid value.
        """
        for setting in settings:
            if setting.key not in composition.keys:
                raise ConfigError(unknown_key(setting.key))
            if setting.text not in self.checked:
                self.checked[setting.text] = typed_value(setting.key, setting.value)
        return with_values(composition.run, {setting.key: self.checked[setting.text] for setting in settings})

    def combined(self, fixed: tuple[str, ...], choices: list[Setting]) -> Composition:
        """Return the composition of the overrides in `fixed` and of the choices of groups.

        If `by_parts` is set and each choice changes only its own group, each choice is composed by itself and the
        groups of the results are combined.
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
        """Return the composition with these settings of keys of Hydra and the executor.

        Raises ConfigError for an unknown key of the executor.
        """
        if not settings:
            return composition
        key = (composition, tuple(setting.text for setting in settings))
        if key not in self.adjustments:
            whole = editable(composition.whole)
            for name, setting in ((setting.key.lstrip("+"), setting) for setting in settings):
                group, _, rest = name.partition(".")
                if group == "executor" and rest not in whole.executor:
                    raise ConfigError(unknown_key(name))
                OmegaConf.update(whole, name, setting.value)
            whole.hydra.overrides.hydra = [s.text for s in settings if s.key.lstrip("+").startswith("hydra.")]
            self.adjustments[key] = replace(composition, whole=whole)
        return self.adjustments[key]

    def composed(self, overrides: tuple[str, ...]) -> Composition:
        """Return Hydra's composition of these overrides, from the cache if they were composed before.

        A new composition sets Hydra's global HydraConfig. It is not cached if an override has an interpolation. For
        invalid overrides, raises ConfigError and errors of Hydra and OmegaConf.
        """
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
        """Raise ConfigError where an override chooses the file of a group by a path, as in norm=folder/file."""
        key, _, choice = text.lstrip("+").partition("=")
        group = key.partition("@")[0]
        if "/" in choice and (options := group_options(group, self.folder)):
            raise ConfigError(unknown_choice(key, choice, options))


def divided(settings: list[Setting]) -> tuple[tuple[str, ...], list[Setting], list[Setting]]:
    """Divide a job's settings by how they are applied: texts for Hydra, choices of groups, values of single keys.

    Choices can be composed one group at a time, and values are set on the result, which is faster than a composition of
    each job. But overrides apply in their order: if a setting is neither a choice nor a plain value, for example a
    dictionary ({lr: 1}) or an added key, Hydra also gets all choices, and the values before the last such setting.
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
    """Return whether the run's parts of two compositions differ outside of this group."""
    return {**part.values, group: None} != {**base.values, group: None}


def check_names(composition: Composition) -> None:
    """Raise ConfigError where a file changes the key `name` of a choice from conf/ or a plugin."""
    for group in GROUPS:
        choice = composition.whole.hydra.runtime.choices.get(group)
        name = OmegaConf.select(composition.whole, f"{group}.name")
        shipped = any((folder / group / f"{choice}.yaml").exists() for folder in (conf_dir(), *plugin_configurations()))
        if shipped and name not in (None, choice):
            raise ConfigError(f"{group}.name={name} is not allowed: {group}={choice} is chosen, whose name is {choice}")


FREE = ["run.dir", "sweep.dir", "sweep.subdir", "verbose", "help", "runtime", "overrides", "searchpath"]
FREE += ["job.override_dirname", "job.config_name"]


def check_files(whole: DictConfig, expected: dict[str, object]) -> None:
    """Raise ConfigError where the user's files set a key of Hydra that is not in FREE, or executor.setup.

    whole: the composed configuration. expected: Hydra's settings without the user's files, by dotted keys.
    executor.setup is executed by a shell, so it has to be typed as an override.
    """
    values = flat(as_dict(whole.hydra))
    for key in values | expected:
        if values.get(key) != expected.get(key) and not any(is_under(key, name) for name in FREE):
            raise ConfigError(f"hydra.{key}={values.get(key)} is not allowed in a file: use {', '.join(USABLE)}")
    if as_dict(whole.executor).get("setup") is not None:
        raise ConfigError("executor.setup is not allowed in a file: what a shell executes has to be typed")


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, object]:
    """Return the values of nested dictionaries by their dotted keys, each of which begins with `prefix`.

    An empty dictionary is a value.
    """
    flattened = dict[str, object]()
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flattened |= flat(value, f"{prefix}{key}.")
        else:
            flattened[f"{prefix}{key}"] = value
    return flattened
