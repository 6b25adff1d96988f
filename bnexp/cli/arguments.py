"""A command line's arguments: flags and Hydra's overrides."""

import argparse
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from bnexp.cli.errors import suggest_override
from bnexp.runs.config import PATHS, ConfigError, existing_part, known_keys
from bnexp.runs.parse import literal

QUESTIONS = ("help", "cfg", "info")  # which are answered, and nothing runs
OUTPUTS = ("hydra.run.dir", "hydra.sweep.dir")
NULLABLE = ("dataset.path", "init_from")
PLAIN = re.compile(r"(?!(?:null|true|false|inf|nan)$)(?:[a-z_]|\.{0,2}/)[\w./-]*", re.ASCII | re.IGNORECASE)
SWEEP = re.compile(r"(?:choice|shuffle|sort|glob|range|interval|tag)\s*\(.*\)", re.DOTALL)


@dataclass(frozen=True)
class Arguments:
    """The overrides, and the flags that were given with their values."""

    overrides: list[str]
    flags: dict[str, str | bool] = field(default_factory=dict)

    @property
    def multirun(self) -> bool:
        """Whether they are of a sweep."""
        return "multirun" in self.flags

    @property
    def is_question(self) -> bool:
        """Whether they ask for something, and nothing is to be run."""
        return not self.flags.keys().isdisjoint(QUESTIONS)

    @property
    def config_name(self) -> str:
        """The primary configuration."""
        return str(self.flags.get("config_name", "config"))

    @property
    def config_dir(self) -> str | None:
        """A folder of the user's with more configurations."""
        return str(self.flags["config_dir"]) if "config_dir" in self.flags else None

    @property
    def for_hydra(self) -> list[str]:
        """The flags as Hydra has to see them for a question, without --multirun."""
        pairs = ((f"--{name.replace('_', '-')}", value) for name, value in self.flags.items() if name != "multirun")
        return [word for flag, value in pairs for word in ([flag] if value is True else [flag, str(value)])]


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would end the process."""

    def error(self, message: str) -> NoReturn:
        """Raise the message."""
        raise ConfigError(message)


def read_arguments(arguments: list[str]) -> Arguments:
    """Flags and overrides in any order. Raises ConfigError."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--config-name", "-cn")
    parser.add_argument("--config-dir", "-cd")
    choices = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=choices)
    parsed, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise ConfigError(unknown_flag(unknown))
    found = vars(parsed)
    overrides = found.pop("overrides")
    flags = {name: value for name, value in found.items() if value not in (None, False)}
    if "resolve" in flags and "cfg" not in flags:
        raise ConfigError("--resolve is not allowed without --cfg")
    if "config_dir" in flags and not Path(flags["config_dir"]).is_dir():
        raise ConfigError(f"--config-dir {flags['config_dir']} not found: it must be a folder")
    return Arguments([with_quoted_path(word) for word in overrides], flags)


def unknown_flag(words: list[str]) -> str:
    """What is said of a flag that doesn't exist: most are keys, which are set without dashes."""
    flag, value = words[0], next((word for word in words[1:] if not word.startswith("-")), None)
    override = suggest_override(flag, value, known_keys())
    hint = f"an override has no dashes, as {override}" if override else "bnexp train --help lists what there is"
    return f"{flag} is not allowed: {hint}"


def with_quoted_path(override: str) -> str:
    """An override whose value is a path, quoted where Hydra's grammar would read it otherwise.

    That is done for what exists, whatever its name; for a list of such; and for what doesn't exist, unless it is quoted
    already, null, or a function that sweeps.
    """
    named, _, value = override.partition("=")
    key = named.lstrip("+")
    if key not in (*PATHS, *OUTPUTS) or not value:
        return override
    if not exists(value):
        if is_quoted(value) or (key in NULLABLE and value.lower() == "null"):
            return override
        if key in PATHS and SWEEP.fullmatch(value):
            return override
        parts = split_paths(value)
        if key in PATHS and len(parts) > 1 and any(exists(part) or is_quoted(part) for part in parts):
            return f"{named}={','.join(map(quoted, parts))}"
    return f"{named}={quoted(value)}"


def exists(path: str) -> bool:
    """Whether something is at the path, ~ expanded."""
    return os.path.exists(os.path.expanduser(path))


def is_quoted(value: str) -> bool:
    """Whether Hydra reads it as one text in quotes, or as several with commas between."""
    if value[:1] not in ("'", '"'):
        return False
    try:
        parsed = OverridesParser.create().parse_override(f"key={value},{value}")  # twice: a sweep keeps its quotes
    except HydraException:
        return False
    return all(isinstance(part, QuotedString) for part in parsed.sweep_iterator())


def split_paths(value: str) -> list[str]:
    """The paths between the commas; a comma in the name of what exists divides nothing."""
    pieces, paths = value.split(","), list[str]()
    while pieces:
        joined = (",".join(pieces[:end]) for end in range(len(pieces), 0, -1))
        paths.append(next((path for path in joined if exists(path)), pieces[0]))
        pieces = pieces[paths[-1].count(",") + 1 :]
    return paths


def quoted(path: str) -> str:
    """A path in quotes, where Hydra's grammar needs them, with ~ expanded, which shells leave alone behind = and a dot.

    ${…} in the name of what exists is no interpolation, and a lone ??? is no missing value.
    """
    if is_quoted(path) and not exists(path):
        return path
    path = os.path.expanduser(path)
    existing = existing_part(path)
    text = "./???" if path == "???" else literal(existing) + path[len(existing) :]
    return text if PLAIN.fullmatch(text) else QuotedString(text, Quote.single).with_quotes()
