"""Plan a command line, and start its plan.

All of its jobs are composed and checked before the first one starts and before a directory is made.
"""

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from bnexp.cli.arguments import Arguments
from bnexp.cli.compose import Composition, configurations, naming_overrides
from bnexp.cli.overrides import Setting, parse_overrides, single, split_jobs
from bnexp.data.images import Contents
from bnexp.data.load import show_contents
from bnexp.runs.config import PATHS, ConfigError, RunConfig, require, require_path
from bnexp.runs.console import print_line
from bnexp.runs.directory import holds_run
from bnexp.runs.distributed import barrier, processes, rank
from bnexp.runs.files import LONGEST_NAME, is_name, is_utf8, shortest
from bnexp.runs.lock import Lock
from bnexp.sweeps.executor_config import ExecutorConfig, parse_executor
from bnexp.sweeps.job import Job
from bnexp.sweeps.resume import (
    check_directory,
    check_runs,
    clear_partial_files,
    in_their_directories,
    remaining_jobs,
    runs_of,
    submitted_runs,
)
from bnexp.sweeps.run import SweepError, run_sweep
from bnexp.sweeps.stacks import SweepPlan, plan_sweep
from bnexp.sweeps.sweep_record import write_jobs
from bnexp.training.shard import train_shard

LONGEST_PART, LONGEST_PATH = 255, 3800  # bytes of a name, and of a directory: file systems allow 4096 of a path
LONGEST_WORD = 50  # bytes of an override that is part of a name
SMALLEST_DISK = 16 * 2**20  # bytes free, under which no run is started
NUMBER = re.compile(r"\$\{hydra[:.]job\.num\}")  # in hydra.sweep.subdir
DIRNAME = re.compile(r"\$\{hydra[:.]job\.override_dirname\}")


@dataclass(frozen=True)
class Plan:
    """The checked jobs of a command line.

    multirun: whether it is a sweep. directory: the directory of the run or the sweep. jobs: all of its jobs. sweep: the
    plan of the jobs that are not finished. resumed: whether the directory holds runs already. contents: summaries of
    the image folders among the jobs' data sets.
    """

    multirun: bool
    directory: Path
    jobs: list[Job]
    sweep: SweepPlan
    resumed: bool
    contents: list[Contents]

    @property
    def configs(self) -> list[RunConfig]:
        """The configuration of each job."""
        return [job.config for job in self.jobs]


def plan(arguments: Arguments, resume: bool = False, timed: bool = True) -> Plan:
    """Compose and check every job of a command line, print remarks of the checks, and plan the unfinished jobs.

    resume: accept a directory that holds other runs, and skip the checks of its runs. timed: also estimate how long
    training takes, by training a few steps. Raises ConfigError for a job or a directory that isn't allowed, and OSError
    where a file can't be read or written.
    """
    directory, jobs, executor, template = compose_jobs(arguments)
    if executor.is_cluster and not arguments.multirun:
        raise ConfigError(f"executor={executor.name} is for sweeps: add -m, or executor=inline to train here")
    contents = check_runs([job.config for job in jobs])
    check_place(directory, place_key(arguments.multirun))
    unique = len({job.digest for job in jobs}) == len(jobs)
    require(unique, "the sweep", " ".join(arguments.overrides), "it has the same run more than once")
    numbered = template is None or NUMBER.search(template) is not None
    live, own_names = submitted_runs(directory, executor), template is not None
    jobs = in_their_directories(jobs, live)
    runs = (
        runs_of(directory)
        if resume
        else check_directory(directory, jobs, numbered, own_names, live, executor.is_cluster)
    )
    sweep = replace(plan_sweep(remaining_jobs(jobs, runs), executor, directory, timed), live=frozenset(live))
    return Plan(arguments.multirun, directory, jobs, sweep, bool(runs or live), contents)


def place_key(multirun: bool) -> str:
    """Return the key that sets the directory: hydra.sweep.dir for a sweep, hydra.run.dir for a run."""
    return "hydra.sweep.dir" if multirun else "hydra.run.dir"


# ---- jobs and their names


def compose_jobs(arguments: Arguments) -> tuple[Path, list[Job], ExecutorConfig, str | None]:
    """Compose the job of a run, or the jobs of a sweep.

    Return the directory of the run or sweep, the jobs, the executor's configuration, and the `hydra.sweep.subdir` that
    the user chose for the names of the jobs' directories: None without one, and "" for a single run. Raises
    ConfigError for an invalid override.
    """
    overrides, multirun = arguments.overrides, arguments.multirun
    with configurations(arguments.config_dir, arguments.config_name) as composer, naming_overrides(overrides):
        parsed = parse_overrides(overrides)
        rows = split_jobs(parsed, composer.folder) if multirun else [[single(override) for override in parsed]]
        composer.prepare(rows)
        composed = [composer.compose_job(row) for row in rows]
        first = composed[0][1]
        directory = shortest(first.directory(place_key(multirun), name_of_run(parsed)))
    template = chosen_template(parsed, first) if multirun else ""
    folders = subdirectories(parsed, rows, template) if multirun else [""]
    jobs = make_jobs(rows, composed, [directory / folder for folder in folders])
    return directory, jobs, parse_executor(first.executor), template


def make_jobs(
    rows: list[list[Setting]],
    composed: list[tuple[RunConfig, Composition, dict[str, Any]]],
    directories: list[Path],
) -> list[Job]:
    """Make a job from each row of settings, the result of `Composer.compose_job` for it, and its directory."""
    texts = [[setting.text for setting in row if setting.is_run] for row in rows]
    common = set(texts[0]).intersection(*texts) if len(texts) > 1 else set()
    jobs = list[Job]()
    for row, (config, composition, values), directory in zip(texts, composed, directories, strict=True):
        own = [text for text in row if text not in common]
        jobs.append(Job(len(jobs), row, own, config, directory, record=composition.record, values=values))
    return jobs


def chosen_template(overrides: list[Override], first: Composition) -> str | None:
    """Return the unresolved value of `hydra.sweep.subdir` if an override sets it, else None.

    first: the first job's composition.
    """
    if all(override.key_or_group != "hydra.sweep.subdir" for override in overrides):
        return None
    return str(first.record.hydra["sweep"]["subdir"])


def subdirectories(overrides: list[Override], rows: list[list[Setting]], template: str | None) -> list[str]:
    """Return the name of each run's folder inside the sweep's directory.

    A name consists of the settings of the swept keys; where a name can't be a directory's (`is_name`), all are the
    jobs' numbers. template: the names that the user chose by hydra.sweep.subdir, in which the number and the overrides
    of each job are inserted. Raises ConfigError where such a name is not inside the directory or
    still has an interpolation.
    """
    if template is None:
        swept = {override.get_key_element() for override in overrides if override.is_sweep_override()}
        names = [",".join(sorted(setting.text for setting in row if setting.key in swept)) for row in rows]
        return names if all(map(is_name, names)) else [str(number) for number in range(len(rows))]
    folders = []
    for number, row in enumerate(rows):
        name = ",".join(sorted(setting.text for setting in row if setting.is_run))
        folder = inserted(template, number, name)
        inside = "${" not in folder and ".." not in Path(folder).parts and not Path(folder).is_absolute()
        allowed = "a name inside the sweep's directory, with ${hydra:job.num} or ${hydra:job.override_dirname}"
        require(inside, "hydra.sweep.subdir", template, allowed)
        folders.append(folder)
    return folders


def inserted(template: str, number: int, name: str) -> str:
    """Return a template of `hydra.sweep.subdir` with a job's number and its overrides, joined to a name, inserted."""
    return DIRNAME.sub(lambda _: name, NUMBER.sub(str(number), template))


def name_of_run(overrides: list[Override]) -> str:
    """Return the name of a run's directory: its overrides, sorted and joined by commas.

    Overrides with a path or a slash, settings of Hydra and the executor, and overrides of more than LONGEST_WORD bytes
    are left out, as are those that would make the name longer than LONGEST_NAME bytes.
    """
    lines, length = list[str](), 0
    for override in overrides:
        line, key = str(override.input_line), override.key_or_group
        size, is_path = len(os.fsencode(line)), key in PATHS or "/" in line
        fits = size <= LONGEST_WORD and length + size <= LONGEST_NAME
        if not is_path and fits and Setting(line, key, None).is_run:
            lines.append(line)
            length += size + 1
    return ",".join(sorted(lines))


# ---- checks


def check_output(directory: Path, key: str) -> None:
    """Raise ConfigError where a directory for output, or a folder directly in it, holds a run, and as `check_place`.

    key: the argument that sets the directory, for messages.
    """
    if holds_run(directory):
        raise ConfigError(f"{directory} holds a run already: choose another directory")
    check_place(directory, key)


def check_place(directory: Path, key: str) -> None:
    """Raise ConfigError where a directory, existing or not, has an invalid name or can't be written to, or where fewer
    than SMALLEST_DISK bytes are free on its disk.

    key: the argument that sets the directory, for messages.
    """
    require_path(key, str(directory))
    name = f"{key}={directory}"
    if not is_utf8(shortest(directory)):
        raise ConfigError(f"{name} is not allowed: TensorBoard writes to names in UTF-8 alone")
    fits = all(len(os.fsencode(part)) <= LONGEST_PART for part in directory.parts)
    if not fits or len(os.fsencode(directory.absolute())) > LONGEST_PATH:
        raise ConfigError(f"{name} cannot be made: its name is too long")
    parent = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{name} cannot be made: {parent} is not a folder one can write to")
    free = free_bytes(parent)
    if free is not None and free < SMALLEST_DISK:
        raise ConfigError(f"{name} cannot be filled: {free / 2**20:.1f} MiB are free on disk")


def free_bytes(folder: Path) -> int | None:
    """Return the free bytes of a folder's file system; None where it reports none, as cloud storage, or an error."""
    with suppress(OSError):
        usage = shutil.disk_usage(folder)
        return usage.free if usage.total else None
    return None


# ---- start


def start(checked: Plan, compare: dict[str, str | None] | None = None, hint: bool = False) -> bool:
    """Lock the plan's directory, write sweep.json for a sweep, and train the remaining runs.

    Where none remains, a line says so, and sweep.json is written only for a comparison. Under torchrun, rank 0 does so,
    and the other ranks train their shards of the run's batches. Returns whether the runs have ended, as `run_sweep`.

    compare: as in `train_and_compare`; sweep.json records it. hint: as in `run_sweep`. Raises ConfigError if another
    process uses the directory or, for a plan that is not `resumed`, has begun a run there since, SweepError if runs
    failed, and Interrupted after a signal.
    """
    directory, multirun = checked.directory, checked.multirun
    if processes() > 1:
        barrier()
        if rank() > 0:
            if checked.sweep.stacks:
                train_shard(checked.jobs[0].config)
            return True
    if checked.sweep.stacks:
        for contents in checked.contents:
            show_contents(contents)
    with Lock(directory):
        if checked.resumed:
            clear_partial_files(directory, runs_of(directory))
        else:  # again, now that the directory is locked
            check_output(directory, place_key(multirun))
        if multirun and (checked.sweep.stacks or compare is not None):
            write_jobs(directory, checked.jobs, checked.sweep.config, compare)
        if not checked.sweep.stacks:
            print_line(f"{directory} is finished: no run remains")
            return True
        return run_sweep(checked.sweep, hint=hint and compare is None)


def train_and_compare(train: Callable[[], bool], directory: Path, compare: dict[str, str | None] | None) -> None:
    """Call `train`, which trains a run or a sweep, then compare the complete runs in and below its directory.

    Nothing is compared where `train` returns False, since the runs have only been submitted. compare: {"by": KEY}, the
    key whose values are the arms, or None for the default; None where nothing is compared. The comparison is made also
    where runs failed, if any can be compared; the SweepError is raised afterwards. Raises ConfigError where no run
    failed and none can be compared.
    """
    if compare is None:
        train()
        return
    from bnexp.compare.report import report  # needs matplotlib

    try:
        ended = train()
    except SweepError:
        with suppress(ConfigError):  # nothing to compare
            report([directory], compare["by"])
        raise
    if ended:
        report([directory], compare["by"])


def announce(checked: Plan) -> None:
    """Print the plan and about how long it takes, for dry_run=true."""
    for contents in checked.contents:
        show_contents(contents)
    print_line(str(checked.sweep))
