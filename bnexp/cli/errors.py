"""Turn errors into one line for the user: the key, the value, the allowed values, and a suggestion."""

import re
from difflib import get_close_matches

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from bnexp.runs.config import ConfigError, known_keys
from bnexp.sweeps.job import failure_of


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit status and the message for an error.

    The status is 2 for invalid arguments, the error's own (1 or 2) for a SweepError, and 1 for any other error.
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
    """Return the error message for a key that the configuration doesn't have, with a similar key where there is one."""
    if key in known_keys() or key.startswith("executor."):
        return f"{key} is a key that the chosen {key.split('.', maxsplit=1)[0]} doesn't have"
    near = suggest_key(key, known_keys())
    hint = f", did you mean {near}?" if near else ":"
    return f"{key} is not a key of this configuration{hint} bnexp train --help lists them"


def first_line(text: str) -> str:
    """Return the first line of a text that is not blank, stripped; a blank text is returned unchanged."""
    return next((line.strip() for line in text.splitlines() if line.strip()), text)


def unknown_command(name: str, commands: list[str]) -> ConfigError:
    """Return the error for an unknown command, which lists the commands and suggests a similar one."""
    near = get_close_matches(name, commands, n=1, cutoff=0.4)
    return ConfigError(
        f"{name} is not a command{f', did you mean {near[0]}?' if near else ':'} choose from {', '.join(commands)}"
    )


# ---- suggestions: aliases that are common in the field first, then similar spelling

KEYS = {  # alias → the key, or the override that has this effect
    "lr": "optim.lr",
    "learning_rate": "optim.lr",
    "momentum": "optim.momentum",
    "wd": "optim.weight_decay",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "lr_scheduler": "optim.schedule",
    "activation": "act",
    "nonlinearity": "act",
    "model": "arch",
    "network": "arch",
    "net": "arch",
    "architecture": "arch",
    "layers": "arch.hidden",
    "hidden_sizes": "arch.hidden",
    "width": "arch.hidden",
    "normalization": "norm",
    "normalisation": "norm",
    "bn": "norm=batch",
    "batchnorm": "norm=batch",
    "batch_norm": "norm=batch",
    "layernorm": "norm=layer",
    "layer_norm": "norm=layer",
    "groupnorm": "norm=group",
    "group_norm": "norm=group",
    "epsilon": "norm.eps",
    "eps": "norm.eps",
    "initialization": "init",
    "initializer": "init",
    "data": "dataset",
    "data_dir": "dataset.root",
    "augmentation": "dataset.augment",
    "val_size": "dataset.validation",
    "batch": "batch_size",
    "bs": "batch_size",
    "batchsize": "batch_size",
    "iterations": "steps",
    "iters": "steps",
    "max_steps": "steps",
    "num_steps": "steps",
    "epochs": "steps",
    "random_seed": "seed",
    "gpu": "device=cuda",
    "cuda": "device=cuda",
    "amp": "precision=bf16",
    "dtype": "precision",
    "fp16": "precision=bf16",
    "num_threads": "threads",
    "pretrained": "init_from",
    "finetune": "init_from",
    "freeze": "trainable=norms",
    "eval_every": "eval.every",
    "output_dir": "hydra.run.dir",
    "out_dir": "hydra.run.dir",
    "save_dir": "hydra.run.dir",
    "workers": "executor.workers",
    "num_workers": "executor.workers",
    "launcher": "executor",
    "jobs": "executor.workers",
}
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


def suggest_key(key: str, known: tuple[str, ...]) -> str | None:
    """Return the key or override that an unknown key probably means; None where no single key is similar.

    known: the names of all groups and keys: norm, norm.eps, seed, …
    """
    if key in KEYS:
        return KEYS[key]
    group, _, name = key.rpartition(".")
    if KEYS.get(name, "").startswith(f"{group}."):
        return KEYS[name]
    same_name = [other for other in known if other.rpartition(".")[2] == (name or key)]
    if same_name and group not in known:
        return same_name[0] if len(same_name) == 1 else None
    others = [other for other in known if other.rpartition(".")[0] == group]
    near = get_close_matches(key, others, n=1, cutoff=0.75)
    return near[0] if near else None


def suggest_choice(group: str, choice: str, options: list[str]) -> str | None:
    """Return which of a group's options an unknown choice probably means; None where none is similar."""
    plain = choice.lower()
    names = [CHOICES.get(group, {}).get(plain), *(plain.removesuffix(suffix) for suffix in SUFFIXES)]
    exact = next((name for name in names if name in options), None)
    near = get_close_matches(plain, options, n=1, cutoff=0.6)
    return exact or (near[0] if near else None)


def suggest_override(flag: str, value: str | None, known: tuple[str, ...]) -> str | None:
    """Return the override that a flag probably means, as optim.lr=0.1 for --lr 0.1; None where no key is similar.

    value: the argument after the flag, if any. known: the names of all groups and keys.
    """
    name, _, inline = flag.lstrip("-").replace("-", "_").partition("=")
    key = name if name in known else suggest_key(name, known)
    if key is None:
        return None
    return key if "=" in key else f"{key}={inline or value or '…'}"
