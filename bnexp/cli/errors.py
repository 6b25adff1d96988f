"""What went wrong, in one line for a person: the key, the value, what is allowed."""

import re
from difflib import get_close_matches

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from bnexp.cli.suggestions import suggest_choice, suggest_key
from bnexp.runs.config import ConfigError, known_keys


def explain(error: Exception) -> tuple[int, str]:
    """Exit status and line: 2 for invalid arguments, 1 for a run that failed."""
    if isinstance(error, ConfigError):
        return 2, str(error)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return 2, composition_error(error)
    if isinstance(error, OSError) and error.filename:
        return 1, f"{error.filename}: {error.strerror}"
    status = getattr(error, "status", 1)  # a SweepError's
    return status, f"{type(error).__name__}: {error}" if not str(error).startswith(type(error).__name__) else str(error)


def composition_error(error: Exception) -> str:
    """Hydra's and OmegaConf's errors, which take several lines and speak of structs."""
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read: an override is KEY=VALUE ({first_line(error.message)})"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return unknown_choice(*error.missing_cfg_file.rpartition("/")[::2], list(error.options))
    ambiguous = re.match(r"Ambiguous value for argument '([^']+)'", str(error))
    if ambiguous:
        return f"{ambiguous[1]} lists several values: add -m for a sweep, or use bnexp compare"
    text = f"{error} {error.__cause__ or ''}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown and ("not in struct" in text or "No match" in text or "not in" in text):
        return unknown_key(unknown[1])
    if isinstance(error, ConfigCompositionException) and isinstance(error.__cause__, OmegaConfBaseException):
        return f"{first_line(str(error)).removesuffix(':')}: {first_line(str(error.__cause__))}"
    return first_line(str(error))


def unknown_choice(group: str, choice: str, options: list[str]) -> str:
    """What is said of a choice that a group doesn't have."""
    near = suggest_choice(group, choice, options)
    hint = f", did you mean {group}={near}? Choose" if near else ": choose"
    return f"{group}={choice} is unknown{hint} from {', '.join(options)}"


def unknown_key(key: str) -> str:
    """What is said of a key that a configuration doesn't have."""
    if key in known_keys() or key.startswith("executor."):
        return f"{key} is a key that the chosen {key.split('.', maxsplit=1)[0]} doesn't have"
    near = suggest_key(key, known_keys())
    hint = f", did you mean {near}?" if near else ":"
    return f"{key} is not a key of this configuration{hint} bnexp train --help lists them"


def first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), text)


def unknown_command(word: str, commands: list[str]) -> ConfigError:
    near = get_close_matches(word, commands, n=1, cutoff=0.4)
    return ConfigError(
        f"{word} is not a command{f', did you mean {near[0]}?' if near else ':'} choose from {', '.join(commands)}"
    )
