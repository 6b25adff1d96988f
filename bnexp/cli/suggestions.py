"""What was probably meant by a key, a choice or a flag that doesn't exist: the field's aliases first, then spelling."""

from difflib import get_close_matches

KEYS = {  # what people call it elsewhere → its key, or the override that does it
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
CHOICES = {  # a group's name for what people call it elsewhere
    "norm": {"bn": "batch", "ln": "layer", "gn": "group", "in": "instance", "rmsnorm": "rms", "syncbn": "sync_batch"},
    "act": {"swish": "silu", "lrelu": "leaky_relu", "logistic": "sigmoid", "linear": "identity"},
    "arch": {"cnn": "convnet", "fc": "mlp", "dense": "mlp", "wrn": "resnet"},
    "init": {"he": "kaiming", "glorot": "xavier", "gaussian": "normal", "default": "torch"},
    "dataset": {"cifar": "cifar10", "fashion": "fashion_mnist", "fmnist": "fashion_mnist", "folder": "image_folder"},
    "executor": {"local": "processes", "submitit": "slurm", "basic": "inline", "serial": "inline"},
    "optim": {"adam_w": "adamw"},
}
SUFFIXES = ("norm", "_norm", "net")  # batchnorm is batch


def suggest_key(key: str, known: tuple[str, ...]) -> str | None:
    """The key, or the override, that was probably meant by one that doesn't exist; None where nothing is near.

    `known`: groups and keys: norm, norm.eps, seed, …
    """
    if key in KEYS:
        return KEYS[key]
    group, _, name = key.rpartition(".")
    same_name = [other for other in known if other.rpartition(".")[2] == (name or key)]
    if same_name and group not in known:
        return same_name[0] if len(same_name) == 1 else None
    others = [other for other in known if other.rpartition(".")[0] == group]
    near = get_close_matches(key, others, n=1, cutoff=0.7)
    return near[0] if near else None


def suggest_choice(group: str, choice: str, options: list[str]) -> str | None:
    """The choice of a group that was probably meant by one that doesn't exist; None where nothing is near."""
    plain = choice.lower()
    names = [CHOICES.get(group, {}).get(plain), *(plain.removesuffix(suffix) for suffix in SUFFIXES)]
    exact = next((name for name in names if name in options), None)
    near = get_close_matches(plain, options, n=1, cutoff=0.6)
    return exact or (near[0] if near else None)


def suggest_override(flag: str, value: str | None, known: tuple[str, ...]) -> str | None:
    """The override for what was typed as a flag: optim.lr=0.1 for --lr 0.1; None where there is none."""
    name, _, own = flag.lstrip("-").replace("-", "_").partition("=")
    key = name if name in known else suggest_key(name, known)
    if key is None:
        return None
    return key if "=" in key else f"{key}={own or value or '…'}"
