"""`bnexp resume`: what a run or a sweep that was cut off has left to do.

It reads JSON and safetensors alone and composes nothing, so that no file can name what is executed.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bnexp.checkpoint import newest_checkpoint
from bnexp.config import ConfigError, RunConfig, recorded
from bnexp.console import say
from bnexp.messages import explain
from bnexp.running import Sweep, enter
from bnexp.runs import RUN, SWEEP, Launch, RunRecord, complete_runs, config_digest, find_runs, holds_run, to_json
from bnexp.storage import replaced
from bnexp.sweep import Job, Options, StackOfJobs, plan_sweep
from bnexp.train import check, train_together
from bnexp.workers import Emit, Opened, Reporter

LONGEST_NAME = 200  # bytes of a directory's name


def write_jobs(directory: Path, jobs: list[Job], options: Options) -> None:
    """What a sweep is made of, those of its runs that never start included."""
    entries = [{"words": job.words, "overrides": job.overrides, "config": job.config.as_dict()} for job in jobs]
    record = {"workers": options.workers, "max_stack": options.max_stack, "jobs": entries}
    with replaced(directory / SWEEP) as file:
        file.write_text(to_json(record))


def left_to_do(jobs: list[Job], directory: Path) -> list[Job]:
    """Without a sweep's complete runs; each of the others from its newest checkpoint."""
    done, known = complete_runs(directory), by_digest(directory)
    left = [job for job in jobs if config_digest(job.config) not in done]
    return [from_checkpoint(job, known.get(config_digest(job.config))) for job in left]


def check_holds(directory: Path, runs: list[RunConfig]) -> bool:
    """Whether a directory holds some of these runs already. Raises ConfigError where it holds others."""
    if not holds_run(directory):
        return False
    others = by_digest(directory).keys() - {config_digest(config) for config in runs}
    if others:
        raise ConfigError(f"{directory} holds another run already: choose another directory")
    return True


def by_digest(directory: Path) -> dict[str, RunRecord]:
    return {run.record["config_sha256"]: run for run in find_runs([directory])}


def from_checkpoint(job: Job, run: RunRecord | None) -> Job:
    start = newest_checkpoint(run.directory, config_digest(job.config)).step if run else 0
    return replace(job, goes_on=True, start=start)


# ---- the command


def resume(directory: Path) -> str:
    """Finish what the directory holds; says what was there. Raises ConfigError and SweepError."""
    jobs, options = read_jobs(directory)
    check_versions(directory)
    left = left_to_do(jobs, directory)
    if not left:
        return f"{directory} is finished: nothing is left to do"
    for line in dict.fromkeys(line for job in left for line in check(job.config)):
        say(line)
    known = by_digest(directory)
    directories = {job.number: place_of(job, directory, known.get(config_digest(job.config))) for job in left}
    plan = plan_sweep(left, options)
    sweep = Sweep(Finisher(directories), replace(plan, here=plan.here or (directory / RUN).exists()))
    sweep.run()
    sweep.raise_failures({number: why for number, why in sweep.returns.items() if why})
    going_on = sum(job.start > 0 for job in left)
    return f"{directory}: {len(jobs) - len(left)} were finished, {going_on} went on, {len(left) - going_on} began"


@dataclass(frozen=True)
class Finisher:
    """Trains a stack of jobs in their directories. What it returns: by a job's number, why it failed, or None."""

    directories: dict[int, Path]

    def __call__(self, stack: StackOfJobs, emit: Emit) -> dict[int, str | None]:
        members, ends = {}, dict[int, str | None]()
        for job in stack:
            launch = Launch(self.directories[job.number], job.words, job.number)
            try:
                members[job.number] = enter(job, launch, len(stack))
            except Exception as error:  # one directory's trouble is not the others'
                ends[job.number] = explain(error)[1]
            else:
                emit(Opened(job.number, launch.directory))
        if members:
            train_together(list(members.values()), Reporter(list(members), emit))
        outcomes = {number: member.outcome for number, member in members.items()}
        return ends | {n: explain(end)[1] if isinstance(end, Exception) else None for n, end in outcomes.items()}


def check_versions(directory: Path) -> None:
    """Another version of torch would go on with another curve. Raises ConfigError."""
    for run in find_runs([directory]):
        if not run.of_these_versions:
            made = ", ".join(f"{name} {run.record['packages'].get(name)}" for name in ("bnexp", "torch"))
            raise ConfigError(f"{run.directory} was made by {made}: install these to go on, or start it anew")


def place_of(job: Job, directory: Path, run: RunRecord | None) -> Path:
    """Where a run is, or where one that never started goes."""
    if run is not None:
        return run.directory
    name = ",".join(job.overrides)
    fits = name and not name.startswith(".") and "/" not in name and len(name.encode()) <= LONGEST_NAME
    return directory / (name if fits else str(job.number))


def read_jobs(directory: Path) -> tuple[list[Job], Options]:
    """Those of a sweep, as it was planned; of a single run, or a sweep of another launcher, those that have begun.
    Raises ConfigError.
    """
    path = directory / SWEEP
    if not path.exists():
        found = find_runs([directory])
        if not found:
            raise ConfigError(f"{directory} holds neither a run nor a sweep")
        entries = [{**run.record, "words": run.record["overrides"]} for run in found]
        return [make_job(number, entry, directory) for number, entry in enumerate(entries)], Options()
    try:
        record = json.loads(path.read_text())
        jobs = [make_job(number, entry, path) for number, entry in enumerate(record["jobs"])]
        return jobs, Options(record["workers"], record["max_stack"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def make_job(number: int, entry: dict[str, Any], source: Path) -> Job:
    config: RunConfig = recorded(entry["config"])
    return Job(number, [str(word) for word in entry["words"]], [str(word) for word in entry["overrides"]], config)
