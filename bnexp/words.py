"""A command line's words: Hydra's flags and the overrides."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import Quote, QuotedString

from bnexp.config import ConfigError, require

QUESTIONS = ("help", "hydra_help", "cfg", "info")  # Hydra answers, nothing runs
PATHS = ("init_from", "hydra.run.dir", "hydra.sweep.dir", "dataset.path", "dataset.root")
FLAGS = (*QUESTIONS, "resolve", "package", "config_name", "config_dir", "multirun")


@dataclass(frozen=True)
class Words:
    overrides: list[str]
    given: dict[str, str | bool] = field(default_factory=dict)  # flag → its value

    @property
    def multirun(self) -> bool:
        return "multirun" in self.given

    @property
    def asks(self) -> bool:
        return not self.given.keys().isdisjoint(QUESTIONS)

    @property
    def config_name(self) -> str:
        return str(self.given.get("config_name", "config"))

    @property
    def config_dir(self) -> str | None:
        return str(self.given["config_dir"]) if "config_dir" in self.given else None

    @property
    def flags(self) -> list[str]:
        """Of a question, as Hydra has to see them: those that were read here, and not --multirun beside them."""
        given = {name: value for name, value in self.given.items() if name != "multirun"}
        pairs = ((f"--{name.replace('_', '-')}", value) for name, value in given.items())
        return [word for flag, value in pairs for word in ([flag] if value is True else [flag, str(value)])]


def read_words(arguments: list[str]) -> Words:
    """Flags and overrides: Hydra wants flags first, people type them anywhere. Raises ConfigError."""

    def refuse(message: str) -> None:
        raise ConfigError(message)

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign,assignment]
    parser.allow_abbrev = False
    found = vars(parser.parse_intermixed_args(arguments))
    for name in ("config_path", "experimental_rerun"):
        flag = f"--{name.replace('_', '-')}"
        require(found[name] is None, flag, found[name], "--config-dir FOLDER adds configurations to those of bnexp")
    given = {name: found[name] for name in FLAGS if found[name] not in (None, False)}
    if "resolve" in given and "cfg" not in given:
        refuse("--resolve is not allowed without --cfg")
    if "config_dir" in given and not Path(given["config_dir"]).is_dir():
        refuse(f"--config-dir {given['config_dir']} not found: it must be a folder")
    return Words([with_path(word) for word in found["overrides"]], given)


def with_path(word: str) -> str:
    """A path from a home directory, which shells leave alone behind a dot and =; and one to what is there as Hydra can
    read it, with = and commas in its name, as the runs' own have.
    """
    key, _, value = word.partition("=")
    if key not in PATHS or not value:
        return word
    path = os.path.expanduser(value)
    if {"=", ","} & {*path} and not path.startswith(("'", '"')) and os.path.exists(path):
        path = QuotedString(path, Quote.single).with_quotes()
    return f"{key}={path}"
