"""A job: one run of a sweep before it trains; and the executor that a sweep is to be trained by."""

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

EXECUTORS = ("processes", "inline", "slurm")
CLUSTERS = ("slurm", "local")  # of submitit
LARGEST_STACK = 128  # members: the most that was measured, results/performance.md
MOST_WORKERS = 1024


@dataclass(frozen=True)
class HydraRecord:
    """What Hydra composed for runs with the same choice of files, as plain tables: for their folders .hydra/."""

    config: dict[str, Any]
    hydra: dict[str, Any]

    def write(self, job: "Job") -> None:
        """The three files that Hydra leaves for a run: its configuration, Hydra's own, its overrides."""
        config, settings = copy.deepcopy((self.config, self.hydra))
        for key, value in job.values.items():
            group, _, name = key.rpartition(".")
            (config[group] if group else config)[name] = value
        settings["overrides"]["task"] = job.words
        settings["job"] |= {"num": job.number, "id": str(job.number), "override_dirname": ",".join(sorted(job.words))}
        place = literal(str(job.directory.absolute()))
        settings["runtime"] |= {"cwd": literal(os.getcwd()), "output_dir": place}
        folder = job.directory / ".hydra"
        folder.mkdir(exist_ok=True)
        for name, part in (("config", config), ("hydra", {"hydra": settings}), ("overrides", job.words)):
            OmegaConf.save(OmegaConf.create(part), folder / f"{name}.yaml")


@dataclass(frozen=True)
class Job:
    """A run of a sweep: its number, its overrides (`words`), those of them that tell it from the others (`overrides`),
    its configuration, its directory, whether it is compiled; and what Hydra composed for it, with the `values` that
    were set there, which a job that was read from a record lacks.
    """

    number: int
    words: list[str]
    overrides: list[str]
    config: RunConfig
    directory: Path = Path()
    compilation: Compilation = field(default_factory=Compilation)
    record: HydraRecord | None = None
    values: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that its curve depends on."""
        return config_digest(self.config)

    @property
    def title(self) -> str:
        """What tells it from the others, for people."""
        return " ".join(self.overrides) or "defaults"

    @property
    def arm(self) -> str:
        """Its title without the seed."""
        return " ".join(word for word in self.overrides if not word.startswith("seed=")) or "defaults"

    @property
    def launch(self) -> Launch:
        """What its run is created with."""
        return Launch(self.directory, self.words, self.number, self.compilation)


StackOfJobs = list[Job]


@dataclass(frozen=True)
class ExecutorConfig:
    """Which executor trains the stacks of a sweep, and how: conf/executor/. None: chosen from the machine."""

    name: str = "processes"
    workers: int | None = None
    max_stack: int | None = None
    cluster: str = "slurm"
    timeout_min: int = 60
    partition: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For a sweep's record; `parse_executor` reads it back."""
        own = {
            "processes": ("workers", "max_stack"),
            "inline": ("max_stack",),
            "slurm": ("cluster", "timeout_min", "partition", "max_stack", "parameters"),
        }
        return {"name": self.name} | {key: getattr(self, key) for key in own[self.name]}


def parse_executor(values: dict[str, Any]) -> ExecutorConfig:
    """The executor of a composed configuration or of a record. Raises ConfigError."""
    name = values.get("name")
    require(name in EXECUTORS, "executor", name, f"one of {', '.join(EXECUTORS)}")
    found = {key: value for key, value in values.items() if key in ExecutorConfig.__dataclass_fields__}
    for key, most in (("workers", MOST_WORKERS), ("max_stack", LARGEST_STACK), ("timeout_min", 10**6)):
        value = found.get(key)
        automatic = key != "timeout_min" and value in ("auto", None)
        whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
        if key in found:
            auto = "" if key == "timeout_min" else "auto or "
            require(automatic or whole, f"executor.{key}", value, f"{auto}a whole number from 1 to {most}")
            found[key] = None if automatic else value
    if name == "slurm":
        check_slurm(found)
    return ExecutorConfig(**found)


def check_slurm(values: dict[str, Any]) -> None:
    """Raises ConfigError where submitit is missing, or would be given what it cannot have."""
    require(values["cluster"] in CLUSTERS, "executor.cluster", values["cluster"], f"one of {', '.join(CLUSTERS)}")
    partition, parameters = values.get("partition"), values.get("parameters", {})
    named = partition is None or (isinstance(partition, str) and re.fullmatch(r"[\w,.-]+", partition))
    require(bool(named), "executor.partition", partition, "null or the name of a partition")
    require(isinstance(parameters, dict), "executor.parameters", parameters, "a table of submitit's parameters")
    if find_spec("submitit") is None:
        raise ConfigError("executor=slurm needs submitit: pip install 'bnexp[slurm]'")


@dataclass(frozen=True)
class Failure:
    """Why a run failed, in a line; `status` is the exit status of a command that trains it alone."""

    text: str
    status: int = 1


Failures = dict[int, Failure]  # by the job's number
