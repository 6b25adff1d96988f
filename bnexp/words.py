"""A command line's words: Hydra's flags and the overrides."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from bnexp.config import PATHS, ConfigError, existing_part, literal, require

QUESTIONS = ("help", "hydra_help", "cfg", "info")  # Hydra answers, nothing runs
OUTPUTS = ("hydra.run.dir", "hydra.sweep.dir")
NULLABLE = ("dataset.path", "init_from")
PLAIN = re.compile(r"(?!(?:null|true|false|inf|nan)$)(?:[a-z_]|\.{0,2}/)[\w./-]*", re.ASCII | re.IGNORECASE)
SWEEP = re.compile(r"(?:choice|shuffle|sort|glob|range|interval|tag)\s*\(.*\)", re.DOTALL)
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
    """An override whose value is a path, quoted where Hydra's grammar would read it otherwise: what is there, whatever
    its name; a list of such; and what isn't there, unless it is quoted already, null, or a function that sweeps.
    """
    named, _, value = word.partition("=")
    key = named.lstrip("+")
    if key not in (*PATHS, *OUTPUTS) or not value:
        return word
    if not is_there(value):
        if is_quoted(value) or (key in NULLABLE and value.lower() == "null"):
            return word
        if key in PATHS and SWEEP.fullmatch(value):
            return word
        parts = split_paths(value)
        if key in PATHS and len(parts) > 1 and any(is_there(part) or is_quoted(part) for part in parts):
            return f"{named}={','.join(map(quoted, parts))}"
    return f"{named}={quoted(value)}"


def is_there(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))


def is_quoted(value: str) -> bool:
    """Whether Hydra reads it as one text in quotes, or as several with commas between."""
    if value[:1] not in ("'", '"'):
        return False
    try:
        parsed = OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return False
    parts = parsed.sweep_iterator() if parsed.is_sweep_override() else [parsed._value]
    return all(isinstance(part, QuotedString) for part in parts)


def split_paths(value: str) -> list[str]:
    """At the commas, but not at those in the name of what is there."""
    pieces, found = value.split(","), list[str]()
    while pieces:
        joined = (",".join(pieces[:end]) for end in range(len(pieces), 0, -1))
        found.append(next((path for path in joined if is_there(path)), pieces[0]))
        pieces = pieces[found[-1].count(",") + 1 :]
    return found


def quoted(path: str) -> str:
    """A path from a home directory is expanded, which shells leave alone behind a dot and =. ${…} in the name of what
    is there is no interpolation, and a lone ??? no missing value.
    """
    if is_quoted(path) and not is_there(path):
        return path
    path = os.path.expanduser(path)
    there = existing_part(path)
    text = "./???" if path == "???" else literal(there) + path[len(there) :]
    return text if PLAIN.fullmatch(text) else QuotedString(text, Quote.single).with_quotes()
