"""Parse a command line into flags and overrides in Hydra's grammar, and quote the paths in overrides."""

import argparse
import os
import re
from pathlib import Path
from typing import NoReturn

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from bnexp.cli.errors import unknown_flag
from bnexp.runs.config import PATHS, ConfigError, existing_part
from bnexp.runs.parse import literal

OUTPUTS = ("hydra.run.dir", "hydra.sweep.dir")
NULLABLE = ("dataset.path", "init_from")
PLAIN = re.compile(r"(?!(?:null|true|false|inf|nan)$)(?:[a-z_]|\.{0,2}/)[\w./-]*", re.ASCII | re.IGNORECASE)
SWEEP = re.compile(r"(?:choice|shuffle|sort|glob|range|interval|tag)\s*\(.*\)", re.DOTALL)


class Arguments(argparse.Namespace):
    """A parsed command line: the arguments KEY=VALUE, with paths quoted, and the values of the flags.

    multirun makes a sweep. config_name is the primary configuration, and config_dir the user's folder with further
    ones. cfg and info name what is printed instead of training; resolve: whether cfg resolves interpolations.
    """

    overrides: list[str]
    multirun: bool
    cfg: str | None
    resolve: bool
    config_name: str
    config_dir: str | None
    info: str | None


class Parser(argparse.ArgumentParser):
    """A parser of argparse that raises ConfigError for invalid arguments instead of exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError with this message."""
        raise ConfigError(message)


def parse_arguments(arguments: list[str]) -> Arguments:
    """Parse flags and overrides, in any order, and quote the paths in overrides (`with_quoted_path`).

    Raises ConfigError for an unknown flag, an invalid value of a flag, --resolve without --cfg, and a --config-dir that
    is not a folder.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--config-name", "-cn", default="config")
    parser.add_argument("--config-dir", "-cd")
    choices = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=choices)
    parsed, unknown = parser.parse_known_intermixed_args(arguments, Arguments())
    if unknown:
        raise ConfigError(unknown_flag(unknown))
    if parsed.resolve and not parsed.cfg:
        raise ConfigError("--resolve is not allowed without --cfg")
    if parsed.config_dir is not None and not Path(parsed.config_dir).is_dir():
        raise ConfigError(f"--config-dir {parsed.config_dir} not found: it must be a folder")
    parsed.overrides = list(map(with_quoted_path, parsed.overrides))
    return parsed


def with_quoted_path(override: str) -> str:
    """Apply `quoted` to the value of an override whose key takes a path; return any other override unchanged.

    A value that is an existing path is always one path. Otherwise, values that are empty or quoted already, null where
    the key allows it, and functions that sweep, as choice(a,b), are returned unchanged. In a list with commas, each
    path is quoted by itself if one of them exists or is quoted; if not, the list is one path. Other functions and lists
    are one path for hydra.run.dir and hydra.sweep.dir, which take a single value.
    """
    named, _, value = override.partition("=")
    key = named.lstrip("+")
    if key == "init_sha256" and re.fullmatch("[0-9a-fA-F]+", value):  # Hydra would read 12345e67 as a number
        return f"{named}='{value}'"
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
    """Return whether a path exists, after ~ in it is expanded."""
    return os.path.exists(os.path.expanduser(path))


def is_quoted(value: str) -> bool:
    """Return whether Hydra parses a value as one quoted string, or as several that are separated by commas."""
    if value[:1] not in ("'", '"'):
        return False
    try:
        parsed = OverridesParser.create().parse_override(f"key={value},{value}")  # twice: a sweep keeps its quotes
    except HydraException:
        return False
    return parsed.is_sweep_override() and all(isinstance(part, QuotedString) for part in parsed.sweep_iterator())


def split_paths(value: str) -> list[str]:
    """Split a list of paths at its commas, except at commas in the name of an existing file or folder."""
    pieces, paths = value.split(","), list[str]()
    while pieces:
        joined = (",".join(pieces[:end]) for end in range(len(pieces), 0, -1))
        paths.append(next((path for path in joined if exists(path)), pieces[0]))
        pieces = pieces[paths[-1].count(",") + 1 :]
    return paths


def quoted(path: str) -> str:
    """Expand ~ in a path, which shells don't do after =, and add single quotes where Hydra's grammar needs them.

    In the part of the path that exists, ${ is escaped, so that it begins no interpolation. The path ???, which Hydra
    reads as a missing value, becomes ./???. A path that is quoted already is returned unchanged, unless a file or
    folder has this name.
    """
    if is_quoted(path) and not exists(path):
        return path
    path = os.path.expanduser(path)
    existing = existing_part(path)
    text = "./???" if path == "???" else literal(existing) + path[len(existing) :]
    return text if PLAIN.fullmatch(text) else QuotedString(text, Quote.single).with_quotes()
