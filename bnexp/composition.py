"""Configurations as Hydra composes them from conf/ and the user's words, typed; and what of Hydra's own may be set."""

import copy
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import ClassVar

import hydra
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import Container, DictConfig, OmegaConf, open_dict

from bnexp.config import GROUPS, ConfigError, RunConfig, parse
from bnexp.messages import explain, unknown_choice

LONGEST_SHOWN = 100  # characters of an override in a complaint
MOST_COMPOSED = 400  # compositions that are kept, of 16 kB


def conf_dir() -> Path:
    """conf/ beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    return next(path for path in (package.parent / "conf", package / "conf") if (path / "config.yaml").exists())


class Repository(ConfigRepository):
    """Hydra's own, which reads a file of conf/ or of Hydra once in a process: a fifth of a composition's time."""

    read: ClassVar[dict[tuple[str, str], bytes]] = {}

    def __deepcopy__(self, memo: object) -> "Repository":
        """For every composition Hydra copies it, whose list of folders it may replace: to copy these takes 8 ms."""
        return copy.copy(self)

    def load_config(self, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.provider not in ("hydra", "main"):  # somebody's folder may change
            return super().load_config(config_path)
        key = source.path, config_path
        if key not in self.read:
            self.read[key] = pickle.dumps(super().load_config(config_path))
        found: ConfigResult = pickle.loads(self.read[key])
        return found


class Loader(ConfigLoaderImpl):
    """Hydra's own, which remembers: words that choose the same files are composed once, which takes 0.1 s or, where all
    are files of our groups, 0.01. Their values are set on a copy, as Hydra sets them.
    """

    def __init__(self, folder: str | None) -> None:
        """`folder`: of the user's, read behind conf/ as --config-dir has it."""
        path = create_config_search_path(str(conf_dir()))
        if folder is not None:
            path.prepend("command-line", f"file://{Path(folder).absolute()}", SearchPathQuery(provider="schema"))
        super().__init__(path)
        self.repository = Repository(path)
        self.composed: dict[tuple[object, ...], bytes] = {}

    def _load_configuration_impl(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        words = [parsed(word, self) for word in overrides]
        if validate_sweep_overrides:
            self.validate_sweep_overrides_legal(words, run_mode, from_shell)
        single = [word for word in words if not word.is_sweep_override()]  # Hydra makes nothing of the others
        values = [word for word in single if self.is_value(word)]
        found = self.chosen(config_name, run_mode, [word for word in single if word not in values])
        self._apply_overrides_to_config(values, found)
        record_words(found, words)
        return found

    def chosen(self, name: str | None, mode: RunMode, choices: list[Override]) -> DictConfig:
        """What words compose that choose files."""
        lines = [str(word.input_line) for word in choices]
        key = (name, mode, *lines)
        found: DictConfig
        if key in self.composed:
            found = pickle.loads(self.composed[key])
            return found
        files = {word.key_or_group: self.plain_file(word) for word in choices}
        if name == "config" and files and len(files) == len(choices) and None not in files.values():
            found = self.chosen(name, mode, [])  # the defaults, and in their places these files
            found.hydra.runtime.choices.update({word.key_or_group: word.value() for word in choices})
            with open_dict(found):
                found.update(files)
        else:
            found = super()._load_configuration_impl(name, lines, mode)
        self.remember(key, found)
        return found

    def plain_file(self, word: Override) -> Container | None:
        """A group's file that a word chooses, where that is all that word and file do."""
        group, choice = word.key_or_group, word.value()
        simple = word.type is OverrideType.CHANGE and word.package is None and isinstance(choice, str)
        if group not in GROUPS or not simple:
            return None
        found = self.repository.load_config(f"{group}/{choice}")
        return None if found is None or found.defaults_list or found.header.get("package") else found.config

    def remember(self, key: tuple[object, ...], config: DictConfig) -> None:
        if len(self.composed) == MOST_COMPOSED:
            self.composed.clear()
        with suppress(pickle.PicklingError):  # a process of joblib's or submitit's has imported their plugin twice
            self.composed[key] = pickle.dumps(config)

    def is_value(self, word: Override) -> bool:
        """Hydra sets it after all else, and it chooses no file."""
        return isinstance(word.value(), dict) or not self.repository.group_exists(word.key_or_group)


@cache
def parsed(word: str, loader: Loader | None = None) -> Override:
    """`loader`: of the choices that a glob(…) is about."""
    [override] = OverridesParser.create(config_loader=loader).parse_overrides([word])
    return override


def record_words(config: DictConfig, words: list[Override]) -> None:
    """As Hydra's loader does it."""
    tasks = [word for word in words if not word.is_hydra_override()]
    config.hydra.overrides.task = [word.input_line for word in tasks]
    config.hydra.overrides.hydra = [word.input_line for word in words if word.is_hydra_override()]
    config.hydra.job.override_dirname = get_overrides_dirname(tasks, **config.hydra.job.config.override_dirname)
    config.hydra.runtime.cwd = os.getcwd()


@cache
def our_loader() -> Loader:
    """Of conf/ alone, which doesn't change under a process."""
    return Loader(None)


@contextmanager
def configurations(folder: str | None = None) -> Iterator[Hydra]:
    """Hydra, reading conf/ and behind it a folder of the user's, as --config-dir has it; inside, `compose` works."""
    version.setbase("1.3")
    found = Hydra("bnexp", our_loader() if folder is None else Loader(folder))
    instance = GlobalHydra.instance()
    before, instance.hydra = instance.hydra, found
    try:
        yield found
    finally:
        instance.hydra = before


@contextmanager
def resolving(config: DictConfig) -> Iterator[None]:
    """Inside, ${hydra:…} asks this configuration."""
    instance = HydraConfig.instance()
    before, instance.cfg = instance.cfg, config  # type: ignore[assignment]  # a dataclass to type checkers
    try:
        yield
    finally:
        instance.cfg = before


@contextmanager
def in_words(overrides: list[str]) -> Iterator[None]:
    """Whatever is raised while Hydra reads them is about the words, and names one of them."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # OmegaConf's, of a file that is no table, has none
            raise
        text = "nested too deeply" if isinstance(error, RecursionError) else explain(error)[1]
        keys = [word.lstrip("+~").split("=")[0].split("@")[0] for word in overrides]
        said = text.split(", did you mean")[0]
        named = any(key and re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", said) for key in keys)
        raise ConfigError(text if named else f"{abridged(overrides)}: {text}") from error


def abridged(words: list[str]) -> str:
    return " ".join(word if len(word) <= LONGEST_SHOWN else f"{word[:LONGEST_SHOWN]}…" for word in words)


def compose(name: str, overrides: list[str]) -> DictConfig:
    """A job's configuration, with Hydra's own. Raises what `explain` says in a line."""
    loader = GlobalHydra.instance().config_loader()
    for word in overrides:
        key, _, choice = word.lstrip("+").partition("=")
        group = key.partition("@")[0]
        if "/" in choice and (options := loader.get_group_options(group)):  # a file of another group, or of anywhere
            raise ConfigError(unknown_choice(key, choice, options))
    return hydra.compose(name, overrides, return_hydra_config=True)


def compose_run(overrides: list[str]) -> RunConfig:
    with in_words(overrides):
        return parse(job_part(compose("config", overrides)))


def compose_jobs(name: str, jobs: list[list[str]], fixed: list[str]) -> tuple[list[RunConfig], list[DictConfig]]:
    """Every job's configuration; and, with Hydra's own part, one job's of each choice of files."""
    runs, found = list[RunConfig](), dict[str, DictConfig]()
    for job in jobs:
        config = compose(name, [*job, *fixed])
        runs.append(parse(job_part(config)))
        found.setdefault(str(config.hydra.runtime.choices), config)
    for config in found.values():
        check_choices(config)
    return runs, list(found.values())


def job_part(config: DictConfig) -> DictConfig:
    """Without Hydra's own."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def parse_overrides(overrides: list[str]) -> list[Override]:
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, Loader)
    words = [parsed(word, loader) for word in overrides]
    for word in words:
        check_word(word)
    return words


def check_word(word: Override) -> None:
    line, key = word.input_line, word.key_or_group
    if not key:
        raise ConfigError(f"{line} cannot be read: an override is KEY=VALUE")
    if word.is_delete():
        raise ConfigError(f"{line} is not allowed: a key can be changed, not deleted")
    if key in GROUPS and any(isinstance(value, list) for value in values_of(word)):
        raise ConfigError(
            f"{line} is not allowed: a choice is one name; a sweep over several is {key}=none,batch with -m"
        )
    group = name_of_choice(word)
    if group:
        raise ConfigError(f"{line} is not allowed: the name of a choice is fixed, {group}=NAME makes another choice")
    if word.is_hydra_override() and "." in key and not is_under(key.removeprefix("hydra."), SETTABLE):
        raise ConfigError(f"{line} is not allowed: {ALLOWED}")
    if word.is_hydra_override() and word.is_sweep_override():
        raise ConfigError(f"{line} is not allowed: Hydra's own keys have one value in a sweep")


def values_of(override: Override) -> Iterator[object]:
    """Its value, or those of a sweep."""
    return override.sweep_iterator() if override.is_sweep_override() else iter([override.value()])


def name_of_choice(override: Override) -> str | None:
    """The group whose choice would get another name by this override, so that norm=batch could train layer norm."""
    group, _, part = override.key_or_group.partition(".")
    if group not in GROUPS:
        return None
    tables = (value for value in values_of(override) if isinstance(value, dict) and not part)
    return group if part == "name" or any("name" in map(str, table) for table in tables) else None


def check_choices(config: DictConfig) -> None:
    """A file may rename a choice no more than an override may. Raises ConfigError."""
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, Loader)
    for group in GROUPS:
        choice = config.hydra.runtime.choices.get(group)
        file = loader.repository.load_config(f"{group}/{choice}") if choice else None
        name = OmegaConf.select(file.config, "name") if file else None
        found = OmegaConf.select(config, f"{group}.name")
        if name is not None and found != name:
            raise ConfigError(f"{group}.name={found} is not allowed: {group}={choice} is chosen, whose name is {name}")


# ---- Hydra's own part

SETTABLE = ("run.dir", "sweep.dir", "sweep.subdir", "verbose", "launcher", "help")
BOOKKEEPING = ("runtime", "job.override_dirname", "job.config.override_dirname.exclude_keys", "job.config_name")
MADE = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")  # of Hydra's `instantiate`
OF_A_JOB = ("${hydra:job.num}", "${hydra:job.override_dirname}", "${hydra.job.num}", "${hydra.job.override_dirname}")
TYPED = "a launcher's texts have to be typed, in no file"
ALLOWED = f"of Hydra's own keys {', '.join(f'hydra.{name}' for name in SETTABLE)} can be set"


def check_hydra(compositions: list[DictConfig], words: set[str]) -> None:
    """Hydra's part names classes that are made, files that are written, variables that are set: whatever words or files
    of a user say, all but a few values stay as conf/ and the chosen launcher have them. Raises ConfigError.
    """
    for composition in compositions:
        found = composition.hydra
        choices = {group: choice for group, choice in found.runtime.choices.items() if group.startswith("hydra/")}
        ours = plain_hydra(tuple(f"{group}={choice}" for group, choice in choices.items() if choice is not None))
        theirs = flat(found)
        for key in theirs | ours:
            same = key in ours and key in theirs and ours[key] == theirs[key]
            if not (same or is_free(key, theirs.get(key), words)):
                why = TYPED if is_under(key, ("launcher",)) else ALLOWED
                raise ConfigError(f"hydra.{key}={theirs.get(key)} is not allowed: {why}")


@cache
def plain_hydra(choices: tuple[str, ...]) -> dict[str, object]:
    """Hydra's part of conf/'s own configuration, with these choices."""
    with configurations():
        return flat(compose("config", list(choices)).hydra)


def is_free(key: str, value: object, words: set[str]) -> bool:
    """Whether the user, or Hydra itself, may set it so."""
    text = str(value)
    if is_under(key, ("overrides",)):
        return value in words if isinstance(value, str) else not value
    if is_under(key, ("sweep.subdir",)):  # a name inside the sweep's directory
        for part in OF_A_JOB:
            text = text.replace(part, "")
        return "${" not in text and ".." not in Path(text).parts and not Path(text).is_absolute()
    if is_under(key, ("launcher",)):  # submitit runs some of its texts in a shell: no file may set one
        parts = key.split(".")
        harmless = value is None or isinstance(value, bool | int | float | dict | list)  # an empty table or list
        harmless = harmless and all(part.isidentifier() or part.isdigit() for part in parts)
        return (harmless or f"hydra.{key}" in typed(words)) and {*MADE}.isdisjoint(parts) and "${" not in text
    if is_under(key, ("verbose",)):
        return isinstance(value, bool | str)
    return is_under(key, BOOKKEEPING) or (is_under(key, SETTABLE) and {*MADE}.isdisjoint(key.split(".")))


def typed(words: set[str]) -> set[str]:
    """Keys of the launcher that words set, down to the values in a table or list."""
    launcher = [parsed(word) for word in words if word.lstrip("+").startswith("hydra.launcher.")]
    return {key for word in launcher for key, _ in leaves(word.value(), word.key_or_group)}


def is_under(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def flat(config: DictConfig) -> dict[str, object]:
    """Values, unresolved, by their dotted keys and places in lists."""
    return dict(leaves(OmegaConf.to_container(config, resolve=False), ""))


def leaves(value: object, path: str) -> Iterator[tuple[str, object]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    empty = True
    for key, part in parts:
        empty = False
        yield from leaves(part, f"{path}.{key}" if path else str(key))
    if empty:
        yield path, value
