"""The tasks of an array of jobs of Slurm: their files in the sweep's directory, and the process that trains one.

An array is written to two files in the folder FOLDER of the sweep: NAME.jsonl, whose first line has what its runs
share and each further line a task, and NAME.id, its job id. Each task adds a log and NAME-INDEX.json, its result.
All of it is JSON, in which nothing can name code to execute: `python -m bnexp.sweeps.slurm_task FOLDER NAME INDEX`
trains a task.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

from bnexp.runs.directory import Compilation, digest_of
from bnexp.runs.files import write_whole
from bnexp.runs.log import set_up_logging
from bnexp.runs.parse import paths_of
from bnexp.runs.record import read_fitting
from bnexp.runs.streams import protect_streams
from bnexp.sweeps.job import Failure, HydraRecord, Job
from bnexp.sweeps.stacks import Task
from bnexp.sweeps.sweep_record import make_job
from bnexp.sweeps.train import train_stack
from bnexp.training.device import CORES
from bnexp.training.signals import Interrupted, StopRequest

FOLDER = ".slurm"


@dataclass(frozen=True)
class Progress:
    """How far a task is: the number of its stacks that have ended, and the failures of their runs by digest."""

    ended: int = 0
    failures: dict[str, Failure] = field(default_factory=dict)


# ---- files


def array_path(folder: Path, array: str) -> Path:
    """Return the path of the file with an array's tasks."""
    return folder / f"{array}.jsonl"


def id_path(folder: Path, array: str) -> Path:
    """Return the path of the file with an array's job id."""
    return folder / f"{array}.id"


def progress_path(folder: Path, array: str, index: int) -> Path:
    """Return the path of the file with a task's progress."""
    return folder / f"{array}-{index}.json"


def write_tasks(path: Path, tasks: list[Task], cores: int) -> None:
    """Write an array of tasks as lines of JSON. cores: how many cores a run may use."""
    records = list({id(job.record): job.record for task in tasks for stack in task for job in stack}.values())
    places = {id(record): place for place, record in enumerate(records)}
    shared = {"cores": cores, "records": [record and asdict(record) for record in records]}
    lines = [shared, *([[entry_of(job, places[id(job.record)]) for job in stack] for stack in task] for task in tasks)]
    write_whole(path, "".join(f"{json.dumps(line)}\n" for line in lines))


def entry_of(job: Job, record: int) -> dict[str, Any]:
    """Return a job as JSON. record: the place of its record among those that the array shares."""
    return {
        "number": job.number,
        "words": job.overrides,
        "overrides": job.own_overrides,
        "config": job.config.as_dict(),
        "paths": paths_of(job.config, job.directory),
        "compilation": asdict(job.compilation),
        "record": record,
        "values": job.values,
    }


def read_task(path: Path, index: int) -> tuple[Task, int]:
    """Read a task of an array and the number of its cores. Raises ConfigError for an invalid configuration."""
    with path.open(encoding="utf-8") as file:
        shared = json.loads(next(file))
        stacks = json.loads(next(islice(file, index, None)))
    records = [record and HydraRecord(**record) for record in shared["records"]]
    return [[read_job(entry, records) for entry in stack] for stack in stacks], int(shared["cores"])


def read_job(entry: dict[str, Any], records: list[HydraRecord | None]) -> Job:
    """Return the job of an entry of an array. Raises ConfigError for an invalid configuration."""
    directory = Path(entry["paths"]["directory"])
    return replace(
        make_job(entry["number"], entry, directory),
        directory=directory,
        compilation=Compilation(**entry["compilation"]),
        record=records[entry["record"]],
        values=entry["values"],
    )


def read_digests(path: Path) -> Iterator[list[list[str]]]:
    """Yield for each task of an array the digests of its runs, by stack."""
    with path.open(encoding="utf-8") as file:
        next(file)
        for line in file:
            yield [[digest_of(entry["config"]) for entry in stack] for stack in json.loads(line)]


def read_directories(path: Path) -> dict[str, Path]:
    """Return the directories of all runs of an array, by their digests."""
    with path.open(encoding="utf-8") as file:
        next(file)
        entries = [entry for line in file for stack in json.loads(line) for entry in stack]
    return {digest_of(entry["config"]): Path(entry["paths"]["directory"]) for entry in entries}


def read_progress(path: Path) -> Progress | None:
    """Read how far a task is; None where it has not begun."""
    content = read_fitting(path, {"ended": int, "failures": dict})
    if content is None:
        return None
    return Progress(content["ended"], {name: Failure(**failure) for name, failure in content["failures"].items()})


def write_progress(path: Path, progress: Progress) -> None:
    """Write how far a task is."""
    write_whole(path, json.dumps(asdict(progress)))


# ---- the process


def train_task(task: Task, path: Path) -> None:
    """Train the stacks of a task from the first that has not ended; after each, write its progress to `path`.

    Raises Interrupted after a signal, once all runs are closed.
    """
    progress = read_progress(path) or Progress()
    write_progress(path, progress)
    with StopRequest() as stop:
        while progress.ended < len(task) and not stop.requested():
            stack = task[progress.ended]
            failures = train_stack(stack)
            by_digest = {job.digest: failures[job.number] for job in stack if job.number in failures}
            progress = Progress(progress.ended + 1, progress.failures | by_digest)
            write_progress(path, progress)
    if stop.signum is not None and progress.ended < len(task):
        raise Interrupted(stop.signum)


class TimeLimit:
    """The handler of the signal that Slurm sends before a job's time is over: it stops the process as SIGTERM does."""

    reached = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Record the signal, and send SIGTERM to this process."""
        self.reached = True
        os.kill(os.getpid(), signal.SIGTERM)


def main(folder: Path, array: str, index: int) -> int:
    """Train a task of an array and return the exit status. A job whose time is over is queued again."""
    limit = TimeLimit()
    signal.signal(signal.SIGUSR1, limit)
    protect_streams()
    set_up_logging()
    task, cores = read_task(array_path(folder, array), index)
    os.environ[CORES] = str(cores)
    try:
        train_task(task, progress_path(folder, array, index))
    except Interrupted as interrupted:
        if limit.reached:
            subprocess.run(["scontrol", "requeue", own_id()], check=False)
        return 128 + interrupted.signum
    return 0


def own_id() -> str:
    """Return Slurm's id of this task: 12_3."""
    return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
