"""The configuration of a sweep's executor, as in conf/executor/."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from bnexp.runs.config import ConfigError, require

ON_CLUSTERS = ("runs_per_job", "max_stack", "cpus", "gpus")
EXECUTOR_KEYS = {  # name → its keys in conf/executor/; bnexp/sweeps/run.py has what each name makes
    "processes": ("workers", "max_stack"),
    "inline": ("max_stack",),
    "slurm": (*ON_CLUSTERS, "mem_gb", "timeout_min", "partition", "account", "nodelist", "setup", "detach"),
    "ray": ON_CLUSTERS,
}
LARGEST_STACK = 128  # members: the most that was measured, results/performance.md
MOST_WORKERS = 1024
SHORTEST = 5  # minutes of a job of Slurm, which comes up to a minute late with the signal that its time is over
COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "sinfo")  # of Slurm


@dataclass(frozen=True)
class ExecutorConfig:
    """The configuration of the executor of a sweep.

    workers: the number of worker processes. max_stack: the largest number of runs in a stack. On clusters,
    runs_per_job: the number of runs that a job trains in its stacks one after the other, and a job's cpus, gpus (a
    number, or TYPE:NUMBER), mem_gb, timeout_min (minutes), partition, account and nodelist; setup: lines of a shell
    that precede it; detach: end once the jobs are submitted. None is bnexp's choice, or the cluster's.
    """

    name: str = "processes"
    workers: int | None = None
    max_stack: int | None = None
    runs_per_job: int | None = None
    cpus: int | None = None
    gpus: int | str | None = None
    mem_gb: float | None = None
    timeout_min: int | None = None
    partition: str | None = None
    account: str | None = None
    nodelist: str | None = None
    setup: str | None = None
    detach: bool = False

    @property
    def is_cluster(self) -> bool:
        """Whether stacks train on other machines, in jobs that each hold one or more of them."""
        return self.name in ("slurm", "ray")

    def as_dict(self) -> dict[str, Any]:
        """Return the executor's name and the keys that it has, for a sweep's record. `recorded_executor` reads them.

        Of `setup`, which a shell executes, only its presence is recorded.
        """
        values = {"name": self.name} | {key: getattr(self, key) for key in EXECUTOR_KEYS[self.name]}
        return values | ({"setup": self.setup is not None} if "setup" in values else {})


@dataclass(frozen=True)
class Allowed:
    """The values that a key of an executor takes: those for which `check` is true, described by `text`.

    Where `optional`, also "auto" and None, which are the same.
    """

    check: Callable[[Any], bool]
    text: str
    optional: bool = True


def whole(least: int, most: int) -> Allowed:
    """Return the values "auto" or a whole number in a range."""

    def check(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return Allowed(check, f"auto or a whole number from {least} to {most}")


def matching(pattern: str, text: str) -> Allowed:
    """Return the values null or a text that matches a pattern."""
    return Allowed(lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None, f"null or {text}")


def is_number(value: Any) -> bool:
    """Return whether a value is a positive number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6


def are_gpus(value: Any) -> bool:
    """Return whether a value is a number of GPUs, or TYPE:NUMBER."""
    return whole(0, 1024).check(value) or (isinstance(value, str) and bool(re.fullmatch(r"[\w.-]+:\d+", value)))


ALLOWED = {
    "workers": whole(1, MOST_WORKERS),
    "max_stack": whole(1, LARGEST_STACK),
    "runs_per_job": whole(1, 10**6),
    "cpus": whole(1, 1024),
    "gpus": Allowed(are_gpus, "null, a number of GPUs, or TYPE:NUMBER"),
    "mem_gb": Allowed(is_number, "null or a number of GB"),
    "timeout_min": whole(SHORTEST, 10**6),
    "partition": matching(r"[\w,.-]+", "the name of a partition"),
    "account": matching(r"[\w.-]+", "the name of an account"),
    "nodelist": matching(r"[\w,.\[\]-]+", "names of nodes, as node[1-4]"),
    "setup": Allowed(lambda value: isinstance(value, str) and "\0" not in value, "null or lines of a shell"),
    "detach": Allowed(lambda value: isinstance(value, bool), "true or false", optional=False),
}


def parse_executor(values: dict[str, Any]) -> ExecutorConfig:
    """Make an executor's configuration from the values of a composed configuration.

    Raises ConfigError for an unknown name or key, an invalid value, and where Slurm's commands or ray are missing.
    """
    name = values.get("name")
    require(name in EXECUTOR_KEYS, "executor", name, f"one of {', '.join(EXECUTOR_KEYS)}")
    others = sorted(values.keys() - {"name", *EXECUTOR_KEYS[str(name)]})
    if others:
        raise ConfigError(f"executor.{others[0]} is a key that executor={name} doesn't have")
    checked = {key: checked_value(key, value) for key, value in values.items() if key != "name"}
    lacking = next((command for command in COMMANDS if name == "slurm" and shutil.which(command) is None), None)
    if lacking:
        raise ConfigError(f"executor=slurm needs the commands of Slurm, and there is no {lacking} here")
    if name == "ray" and find_spec("ray") is None:
        raise ConfigError("executor=ray needs ray: pip install 'bnexp[ray]'")
    if name == "ray":
        gpus = checked.get("gpus")
        require(not isinstance(gpus, str), "executor.gpus", gpus, "a number of GPUs, or null, for executor=ray")
    return ExecutorConfig(str(name), **checked)


def checked_value(key: str, value: Any) -> Any:
    """Return the value of a key of an executor, None for "auto". Raises ConfigError for an invalid one."""
    allowed = ALLOWED[key]
    automatic = allowed.optional and value in ("auto", None)
    require(automatic or allowed.check(value), f"executor.{key}", value, allowed.text)
    return None if automatic else value


def recorded_executor(values: dict[str, Any]) -> ExecutorConfig:
    """Make an executor's configuration from the record of a sweep; a key that the record lacks has its default.

    Raises ConfigError as `parse_executor` does, and where the sweep has a `setup`, which the record doesn't hold: what
    a shell executes is not read from a file. A sweep that is resumed is waited for (`detach`).
    """
    if values.get("setup"):
        raise ConfigError("executor.setup is not read from a record: repeat the sweep's command, which resumes it")
    return parse_executor({key: value for key, value in values.items() if key not in ("setup", "detach")})
