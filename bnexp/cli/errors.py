"""Turn errors into one line for the user: the key, the value, the allowed values, and a suggestion."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from bnexp.runs.config import ConfigError, known_keys
from bnexp.sweeps.job import failure_of


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit status and the message for an error.

    The status is 2 for a ConfigError or an error of Hydra or OmegaConf, the error's own (1 or 2) for a SweepError, and
    1 for any other error.
    """
    if isinstance(error, HydraException | OmegaConfBaseException):
        return 2, composition_error(error)
    if hasattr(error, "status"):  # a SweepError
        return int(error.status), str(error)
    failure = failure_of(error)
    return failure.status, failure.text


def composition_error(error: Exception) -> str:
    """Return one line for an error of Hydra or OmegaConf, whose own messages have several."""
    if isinstance(error, OverrideParseException):
        return f"{error.override} cannot be read: an override is KEY=VALUE ({first_line(error.message)})"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        return unknown_choice(*error.missing_cfg_file.rpartition("/")[::2], list(error.options))
    text = f"{error} {error.__cause__ or ''}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown and ("not in struct" in text or "No match" in text or "not in" in text):
        return unknown_key(unknown[1])
    if isinstance(error, ConfigCompositionException) and isinstance(error.__cause__, OmegaConfBaseException):
        return f"{first_line(str(error)).removesuffix(':')}: {first_line(str(error.__cause__))}"
    return first_line(str(error))


def unknown_choice(group: str, choice: str, options: list[str]) -> str:
    """Return the error message for a choice that a group doesn't have. options: the choices that it has."""
    near = suggest_choice(group, choice, options)
    hint = f", did you mean {group}={near}? Choose" if near else ": choose"
    return f"{group}={choice} is unknown{hint} from {', '.join(options)}"


def unknown_key(key: str) -> str:
    """Return the error message for a key that the configuration doesn't have, with a similar key where there is one.

    For a key that other files of the same group have, such as optim.momentum, and for any key executor.…, it says that
    the chosen one lacks it.
    """
    if key in known_keys() or key.startswith("executor."):
        return f"{key} is a key that the chosen {key.split('.', maxsplit=1)[0]} doesn't have"
    near = suggest_key(key)
    hint = f", did you mean {near}?" if near else ":"
    return f"{key} is not a key of this configuration{hint} bnexp train --help lists them"


def first_line(text: str) -> str:
    """Return the first line of a text that is not blank, stripped; a blank text is returned unchanged."""
    return next((line.strip() for line in text.splitlines() if line.strip()), text)


def unknown_command(name: str, commands: list[str]) -> ConfigError:
    """Return the error for an unknown command, which lists the commands and suggests a similar one."""
    near = closest(name, commands, 0.4)
    hint = f", did you mean {near}?" if near else ":"
    return ConfigError(f"{name} is not a command{hint} choose from {', '.join(commands)}")


def unknown_flag(arguments: list[str]) -> str:
    """Return the error message for an unknown flag, `arguments[0]`, with the override that it probably means, if any.

    Most unknown flags are keys, which are set without dashes: for --lr 0.1 the message suggests optim.lr=0.1. The value
    is what follows = in the flag, else the first later argument that does not begin with a dash, else "…".
    """
    flag, following = arguments[0], next((text for text in arguments[1:] if not text.startswith("-")), None)
    name, _, inline = flag.lstrip("-").replace("-", "_").partition("=")
    key = name if name in known_keys() else suggest_key(name)
    if key is None:
        return f"{flag} is not allowed: bnexp train --help lists all arguments"
    override = key if "=" in key else f"{key}={inline or following or '…'}"
    return f"{flag} is not allowed: an override has no dashes, as {override}"


# ---- suggestions: aliases that are common in the field first, then similar spelling

NAMES = {  # a key, or an override → common names of the key, or of the effect of the override
    "optim.lr": "lr learning_rate",
    "optim.momentum": "momentum",
    "optim.weight_decay": "wd",
    "optim": "optimizer",
    "optim.schedule": "scheduler lr_scheduler",
    "act": "activation nonlinearity",
    "arch": "model network net architecture",
    "arch.hidden": "layers hidden_sizes width",
    "norm": "normalization normalisation",
    "norm=batch": "bn batchnorm batch_norm",
    "norm=layer": "layernorm layer_norm",
    "norm=group": "groupnorm group_norm",
    "norm.eps": "epsilon eps",
    "init": "initialization initializer",
    "dataset": "data",
    "dataset.root": "data_dir",
    "dataset.augment": "augmentation",
    "dataset.validation": "val_size",
    "batch_size": "batch bs batchsize",
    "steps": "iterations iters max_steps num_steps epochs",
    "seed": "random_seed",
    "device=cuda": "gpu cuda",
    "precision=bf16": "amp fp16",
    "precision": "dtype",
    "threads": "num_threads",
    "init_from": "pretrained finetune",
    "trainable=norms": "freeze",
    "eval.every": "eval_every",
    "hydra.run.dir": "output_dir out_dir save_dir",
    "executor.workers": "workers num_workers jobs",
    "executor": "launcher",
}
KEYS = {alias: key for key, aliases in NAMES.items() for alias in aliases.split()}
CHOICES = {  # group → alias → the name of the choice
    "norm": {"bn": "batch", "ln": "layer", "gn": "group", "in": "instance", "rmsnorm": "rms", "syncbn": "sync_batch"},
    "act": {"swish": "silu", "lrelu": "leaky_relu", "logistic": "sigmoid", "linear": "identity"},
    "arch": {"cnn": "convnet", "fc": "mlp", "dense": "mlp", "wrn": "resnet"},
    "init": {"he": "kaiming", "glorot": "xavier", "gaussian": "normal", "default": "torch"},
    "dataset": {"cifar": "cifar10", "fashion": "fashion_mnist", "fmnist": "fashion_mnist", "folder": "image_folder"},
    "executor": {"local": "processes", "submitit": "slurm", "basic": "inline", "serial": "inline"},
    "optim": {"adam_w": "adamw"},
}
SUFFIXES = ("norm", "_norm", "net")  # that an alias may have: batchnorm for batch


def closest(name: str, options: Sequence[str], cutoff: float) -> str | None:
    """Return the option whose spelling is closest to a name; None where none is as similar as `cutoff`, from 0 to 1."""
    return next(iter(get_close_matches(name, options, n=1, cutoff=cutoff)), None)


def suggest_key(key: str) -> str | None:
    """Return the key or override that an unknown key probably means; None where no single key is similar."""
    if key in KEYS:
        return KEYS[key]
    group, _, name = key.rpartition(".")
    if KEYS.get(name, "").startswith(f"{group}."):
        return KEYS[name]
    same_name = [other for other in known_keys() if other.rpartition(".")[2] == name]
    if same_name and group not in known_keys():
        return same_name[0] if len(same_name) == 1 else None
    return closest(key, [other for other in known_keys() if other.rpartition(".")[0] == group], 0.75)


def suggest_choice(group: str, choice: str, options: list[str]) -> str | None:
    """Return which of a group's options an unknown choice probably means; None where none is similar."""
    plain = choice.lower()
    names = [CHOICES.get(group, {}).get(plain), *(plain.removesuffix(suffix) for suffix in SUFFIXES)]
    exact = next((name for name in names if name in options), None)
    return exact or closest(plain, options, 0.6)
