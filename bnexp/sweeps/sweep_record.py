"""Write and read sweep.json, the record of a sweep: all of its jobs, also those that never start, and its executor."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from bnexp.runs.config import ConfigError
from bnexp.runs.directory import SWEEP, to_json
from bnexp.runs.files import read_json, write_whole
from bnexp.runs.parse import paths_of, recorded
from bnexp.runs.record import comparison_of, find_runs, fits, locate, run_name
from bnexp.sweeps.executor_config import ExecutorConfig, recorded_executor
from bnexp.sweeps.job import Job


def write_jobs(
    directory: Path, jobs: list[Job], executor: ExecutorConfig, compare: dict[str, str | None] | None = None
) -> None:
    """Write sweep.json: all jobs of a sweep, also those that never start.

    compare: as `comparison_of` returns it; a value that sweep.json has already takes precedence.
    """
    entries = [
        {
            "words": job.overrides,
            "overrides": job.own_overrides,
            "config": job.config.as_dict(),
            "paths": paths_of(job.config, directory),
            "folder": job.directory.absolute().relative_to(directory.absolute()).as_posix(),
        }
        for job in jobs
    ]
    record = {"executor": executor.as_dict(), "compare": comparison_of(directory) or compare, "jobs": entries}
    write_whole(directory / SWEEP, to_json(record))


def read_jobs(directory: Path) -> list[Job]:
    """Return the jobs of sweep.json, or, without this file, a job for each run in the directory.

    Raises ConfigError where the file is damaged, or as `recorded_jobs` does.
    """
    if not (directory / SWEEP).exists():
        return recorded_jobs(directory)
    with refusing(directory / SWEEP) as record:
        if not fits(record, {"jobs": list}):
            raise ValueError("it is not the record of a sweep")
        return [make_job(number, entry, directory) for number, entry in enumerate(record["jobs"])]


def read_executor(directory: Path) -> ExecutorConfig:
    """Return the executor of sweep.json, or, without this file, the default.

    Raises ConfigError where the file is damaged, or as `recorded_executor` does.
    """
    if not (directory / SWEEP).exists():
        return ExecutorConfig()
    with refusing(directory / SWEEP) as record:
        return recorded_executor(record["executor"]) if fits(record, {"executor": dict}) else ExecutorConfig()


@contextmanager
def refusing(path: Path) -> Iterator[Any]:
    """Read a record for the `with` body, whose errors, as those of reading, become ConfigErrors that name the file."""
    try:
        yield read_json(path)
    except (ValueError, KeyError, TypeError) as error:  # a ConfigError is a ValueError
        raise ConfigError(f"{path} cannot be read: {error}") from error


def recorded_jobs(directory: Path) -> list[Job]:
    """Make a job from each run in a directory without sweep.json, which is a run's own or has runs as its subfolders.

    Raises ConfigError where it holds no runs, runs deeper down, or one with an invalid configuration.
    """
    runs = find_runs([directory])
    if not runs:
        raise ConfigError(f"{directory} holds neither a run nor a sweep")
    if any(directory not in (run.directory, run.directory.parent) for run in runs):
        raise ConfigError(f"{directory} holds runs deeper down: name one run's directory, or one sweep's")
    return [
        make_job(number, run.record | {"words": run.record["overrides"]}, run.directory)
        for number, run in enumerate(runs)
    ]


def make_job(number: int, entry: dict[str, Any], directory: Path) -> Job:
    """Make a job from an entry of a record. Its directory is the entry's folder in `directory`, or one of its name.

    directory: the directory of the run or sweep whose record it is. Raises ConfigError for an invalid configuration or
    folder, and KeyError for an incomplete entry.
    """
    overrides, own_overrides = ([str(text) for text in entry[key]] for key in ("words", "overrides"))
    config = locate(recorded(entry["config"]), entry.get("paths"), directory)
    folder = PurePosixPath(str(entry.get("folder", run_name(own_overrides, number))))
    if folder.is_absolute() or ".." in folder.parts:
        raise ConfigError(f"its folder {folder} is not in {directory}")
    return Job(number, overrides, own_overrides, config, directory / folder)
