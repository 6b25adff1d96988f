"""The job, which is a run of a sweep before it trains."""

import copy
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bnexp.runs.config import ConfigError, RunConfig
from bnexp.runs.directory import Compilation, Launch, config_digest
from bnexp.runs.parse import literal


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
