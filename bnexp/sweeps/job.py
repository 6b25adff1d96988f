"""The job, which is a run of a sweep before it trains, and the configuration of the sweep's executor."""

import copy
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bnexp.runs.config import ConfigError, RunConfig, require
from bnexp.runs.directory import Compilation, Launch, config_digest
from bnexp.runs.parse import literal

EXECUTOR_KEYS = {  # name → its keys in conf/executor/; bnexp/sweeps/run.py has what each name makes
    "processes": ("workers", "max_stack"),
    "inline": ("max_stack",),
    "slurm": ("cluster", "timeout_min", "partition", "max_stack", "parameters"),
}
CLUSTERS = ("slurm", "local")  # of submitit
LARGEST_STACK = 128  # members: the most that was measured, results/performance.md
MOST_WORKERS = 1024


@dataclass(frozen=True)
class HydraRecord:
    """The configuration as Hydra composed it, in plain dictionaries, for the folders .hydra/ of runs.

    config: the run's part. hydra: Hydra's own settings. It is shared by all jobs that choose the same configuration
    files.
    """

    config: dict[str, Any]
    hydra: dict[str, Any]

    def write(self, job: "Job") -> None:
        """Write the three files of a run's folder .hydra/: the run's configuration, Hydra's own, the run's overrides.

        The job's `values` replace those of the shared configuration.
        """
        config, settings = copy.deepcopy((self.config, self.hydra))
        for key, value in job.values.items():
            group, _, name = key.rpartition(".")
            (config[group] if group else config)[name] = value
        settings["overrides"]["task"] = job.overrides
        settings["job"] |= {
            "num": job.number,
            "id": str(job.number),
            "override_dirname": ",".join(sorted(job.overrides)),
        }
        settings["runtime"] |= {"cwd": literal(os.getcwd()), "output_dir": literal(str(job.directory.absolute()))}
        folder = job.directory / ".hydra"
        folder.mkdir(exist_ok=True)
        for name, part in (("config", config), ("hydra", {"hydra": settings}), ("overrides", job.overrides)):
            OmegaConf.save(OmegaConf.create(part), folder / f"{name}.yaml")


@dataclass(frozen=True)
class Job:
    """A run of a sweep before it trains.

    number: its position in the sweep, from 0. overrides: its overrides of keys of the run. own_overrides: those that
    not all jobs of the sweep have; all of them, if it is the only job. directory: the run's directory. record, values:
    the configuration as Hydra composed it, and what is to be changed in it, by dotted key; None and {} for a job that
    was read from a record.
    """

    number: int
    overrides: list[str]
    own_overrides: list[str]
    config: RunConfig
    directory: Path = Path()
    compilation: Compilation = field(default_factory=Compilation)
    record: HydraRecord | None = None
    values: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of everything in the configuration that the run's metrics depend on."""
        return config_digest(self.config)

    @property
    def title(self) -> str:
        """The job's own overrides in one line, or "defaults" where it has none."""
        return " ".join(self.own_overrides) or "defaults"

    @property
    def arm(self) -> str:
        """The title without the seed, or "defaults"."""
        return " ".join(text for text in self.own_overrides if not text.startswith("seed=")) or "defaults"

    @property
    def launch(self) -> Launch:
        """How the run is launched: its directory, overrides, number and compilation, which its run.json records."""
        return Launch(self.directory, self.overrides, self.number, self.compilation)


StackOfJobs = list[Job]


@dataclass(frozen=True)
class ExecutorConfig:
    """The configuration of the executor of a sweep, as in conf/executor/.

    workers: the number of worker processes. max_stack: the largest number of runs in a stack. Where one of these is
    None, `bnexp.sweeps.stacks` chooses it. cluster, timeout_min (minutes of a job), partition and parameters are
    submitit's.
    """

    name: str = "processes"
    workers: int | None = None
    max_stack: int | None = None
    cluster: str = "slurm"
    timeout_min: int = 60
    partition: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the executor's name and the keys that it has, for a sweep's record. `parse_executor` reads them."""
        return {"name": self.name} | {key: getattr(self, key) for key in EXECUTOR_KEYS[self.name]}


def parse_executor(values: dict[str, Any]) -> ExecutorConfig:
    """Make an executor's configuration from the values of a composed configuration or a record.

    Raises ConfigError for an unknown name or key, an invalid value, and for slurm without submitit.
    """
    name = values.get("name")
    require(name in EXECUTOR_KEYS, "executor", name, f"one of {', '.join(EXECUTOR_KEYS)}")
    others = sorted(values.keys() - {"name", *EXECUTOR_KEYS[str(name)]})
    if others:
        raise ConfigError(f"executor.{others[0]} is a key that executor={name} doesn't have")
    checked = {key: value for key, value in values.items() if key in ExecutorConfig.__dataclass_fields__}
    for key, most in (("workers", MOST_WORKERS), ("max_stack", LARGEST_STACK), ("timeout_min", 10**6)):
        value = checked.get(key)
        automatic = key != "timeout_min" and value in ("auto", None)
        whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
        if key in checked:
            auto = "" if key == "timeout_min" else "auto or "
            require(automatic or whole, f"executor.{key}", value, f"{auto}a whole number from 1 to {most}")
            checked[key] = None if automatic else value
    if name == "slurm":
        check_slurm(checked)
    return ExecutorConfig(**checked)


def check_slurm(values: dict[str, Any]) -> None:
    """Raise ConfigError where submitit is not installed, or where cluster, partition or parameters are invalid."""
    require(values["cluster"] in CLUSTERS, "executor.cluster", values["cluster"], f"one of {', '.join(CLUSTERS)}")
    partition, parameters = values.get("partition"), values.get("parameters", {})
    named = partition is None or (isinstance(partition, str) and re.fullmatch(r"[\w,.-]+", partition))
    require(bool(named), "executor.partition", partition, "null or the name of a partition")
    require(isinstance(parameters, dict), "executor.parameters", parameters, "a table of submitit's parameters")
    if find_spec("submitit") is None:
        raise ConfigError("executor=slurm needs submitit: pip install 'bnexp[slurm]'")


@dataclass(frozen=True)
class Failure:
    """The reason why a run failed, in one line, and the exit status of a command that trains this run alone."""

    text: str
    status: int = 1


Failures = dict[int, Failure]  # by the job's number


def failure_of(error: Exception) -> Failure:
    """Convert an error to a Failure, which can be sent to another process. Its status is 2 for a ConfigError."""
    if isinstance(error, ConfigError):
        return Failure(str(error), 2)
    if isinstance(error, OSError) and error.filename:
        return Failure(f"{error.filename}: {error.strerror}")
    named = str(error).startswith(type(error).__name__)
    return Failure(str(error) if named else f"{type(error).__name__}: {error}")
