"""Plan a command line: compose and check all of its jobs before the first one starts and before a directory is made."""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from bnexp.cli.arguments import Arguments
from bnexp.cli.compose import Composition, configurations, naming_overrides
from bnexp.cli.overrides import Setting, parse_overrides, settings_of, single
from bnexp.runs.config import PATHS, ConfigError, RunConfig, require, require_path
from bnexp.runs.directory import holds_run
from bnexp.runs.files import LONGEST_NAME, is_name, is_utf8, shortest

if TYPE_CHECKING:
    from bnexp.data.images import Contents
    from bnexp.sweeps.job import ExecutorConfig, Job
    from bnexp.sweeps.stacks import SweepPlan

LONGEST_PART, LONGEST_PATH = 255, 3800  # bytes of a name, and of a directory: file systems allow 4096 of a path
LONGEST_WORD = 50  # bytes of an override that is part of a name
SMALLEST_DISK = 16 * 2**20  # bytes free, under which no run is started
NUMBER = ("${hydra:job.num}", "${hydra.job.num}")  # in hydra.sweep.subdir
DIRNAME = ("${hydra:job.override_dirname}", "${hydra.job.override_dirname}")


@dataclass(frozen=True)
class Plan:
    """The checked jobs of a command line.

    directory: the directory of the run or the sweep. jobs: all of its jobs. sweep: the plan of the jobs that are not
    finished. executor: which executor trains them, and how. resumed: whether the directory holds some of the runs
    already.
    """

    arguments: Arguments
    directory: Path
    jobs: "list[Job]"
    sweep: "SweepPlan"
    executor: "ExecutorConfig"
    resumed: bool
    contents: "list[Contents]"  # of the image folders among their data sets

    @property
    def configs(self) -> list[RunConfig]:
        """The configuration of each job."""
        return [job.config for job in self.jobs]


def plan(arguments: Arguments, resume: bool = False, timed: bool = True) -> Plan:
    """Compose and check every job of a command line, print remarks of the checks, and plan the unfinished jobs.

    resume: accept a directory that holds other runs, and skip the checks of its runs. timed: also estimate how long
    training takes, by training a few steps. Raises ConfigError and OSError.
    """
    from bnexp.runs.distributed import processes
    from bnexp.sweeps.job import parse_executor
    from bnexp.sweeps.resume import check_directory, check_runs, remaining_jobs, runs_of, with_compilation
    from bnexp.sweeps.stacks import plan_sweep

    directory, jobs, first, named = compose_jobs(arguments)
    executor = parse_executor(first.executor)
    contents = check_runs([job.config for job in jobs])
    check_place(directory, place_key(arguments.multirun))
    unique = len({job.digest for job in jobs}) == len(jobs)
    require(unique, "the sweep", " ".join(arguments.overrides), "it has the same run more than once")
    numbered = any(token in subdirectory_of(first) for token in NUMBER) if named else True
    runs = runs_of(directory) if resume else check_directory(directory, jobs, numbered, named)
    if runs and processes() > 1:
        raise ConfigError(f"{directory} holds this run already, which torchrun cannot resume: choose another one")
    remaining = with_compilation(remaining_jobs(jobs, runs), runs)
    sweep = plan_sweep(remaining, executor, directory, timed)
    return Plan(arguments, directory, jobs, sweep, executor, bool(runs), contents)


def place_key(multirun: bool) -> str:
    """Return the key that sets the directory: hydra.sweep.dir for a sweep, hydra.run.dir for a run."""
    return "hydra.sweep.dir" if multirun else "hydra.run.dir"


# ---- jobs and their names


def compose_jobs(arguments: Arguments) -> "tuple[Path, list[Job], Composition, bool]":
    """Compose the job of a run, or the jobs of a sweep.

    Return the directory of the run or sweep, the jobs, the composition of the first job, and whether the user chose the
    names of the jobs' directories, which is always so for a single run. Raises ConfigError.
    """
    overrides, multirun = arguments.overrides, arguments.multirun
    with configurations(arguments.config_dir, arguments.config_name) as composer, naming_overrides(overrides):
        parsed = parse_overrides(overrides)
        rows = split_jobs(parsed, composer.folder) if multirun else [[single(override) for override in parsed]]
        composer.prepare(rows)
        composed = [composer.compose_job(row) for row in rows]
        first = composed[0][1]
        directory = first.directory(place_key(multirun), name_of_run(parsed))
    named = any(override.key_or_group == "hydra.sweep.subdir" for override in parsed) or not multirun
    jobs = make_jobs(rows, composed)
    if multirun:
        folders = subdirectories(parsed, rows, first, named)
        jobs = [replace(job, directory=directory / folder) for job, folder in zip(jobs, folders, strict=True)]
        return shortest(directory), [replace(job, directory=shortest(job.directory)) for job in jobs], first, named
    return shortest(directory), [replace(jobs[0], directory=shortest(directory))], first, named


def split_jobs(overrides: list[Override], folder: str | None) -> list[list[Setting]]:
    """Return the settings of every job of a sweep: the product of the listed values, the last key changing fastest.

    folder: the user's folder of configurations, if any. Raises ConfigError for an empty sweep and for equal jobs.
    """
    rows = [list(row) for row in product(*(settings_of(override, folder) for override in overrides))]
    line = " ".join(str(override.input_line) for override in overrides if override.is_sweep_override())
    if not rows:
        raise ConfigError(f"{line} is an empty sweep: give each key a value at least")
    seen = set[tuple[str, ...]]()
    for row in rows:
        texts = tuple(setting.text for setting in row)
        if texts in seen:
            raise ConfigError(f"{line} has the same run more than once: {' '.join(texts)}")
        seen.add(texts)
    return rows


def make_jobs(rows: list[list[Setting]], composed: list[tuple[RunConfig, Composition, dict[str, Any]]]) -> "list[Job]":
    """Make a job, without its directory, from each row of settings and the result of `Composer.compose_job` for it."""
    from bnexp.sweeps.job import Job

    texts = [[setting.text for setting in row if setting.is_run] for row in rows]
    common = set(texts[0]).intersection(*texts) if len(texts) > 1 else set()
    return [
        Job(number, row, [text for text in row if text not in common], config, record=composition.record, values=values)
        for number, (row, (config, composition, values)) in enumerate(zip(texts, composed, strict=True))
    ]


def subdirectories(overrides: list[Override], rows: list[list[Setting]], first: Composition, named: bool) -> list[str]:
    """Return the name of each run's folder inside the sweep's directory.

    A name consists of the settings of the swept keys; where one of these can't be a file's name, all names are the
    jobs' numbers. named: the user chose the names by hydra.sweep.subdir, in which the number and the overrides of each
    job are inserted. first: the first job's composition. Raises ConfigError where such a name is not inside the
    directory.
    """
    swept = {override.get_key_element() for override in overrides if override.is_sweep_override()}
    if not named:
        names = [",".join(sorted(setting.text for setting in row if setting.key in swept)) for row in rows]
        return names if all(map(is_name, names)) else [str(number) for number in range(len(rows))]
    template = subdirectory_of(first)
    folders = []
    for number, row in enumerate(rows):
        name = ",".join(sorted(setting.text for setting in row if setting.is_run))
        folder = with_tokens(template, {**dict.fromkeys(NUMBER, str(number)), **dict.fromkeys(DIRNAME, name)})
        inside = "${" not in folder and ".." not in Path(folder).parts and not Path(folder).is_absolute()
        require(
            inside,
            "hydra.sweep.subdir",
            template,
            f"a name inside the sweep's directory, with {NUMBER[0]} or {DIRNAME[0]}",
        )
        folders.append(folder)
    return folders


def subdirectory_of(composition: Composition) -> str:
    """Return the value of `hydra.sweep.subdir` with unresolved interpolations."""
    settings: Any = OmegaConf.to_container(composition.whole.hydra.sweep, resolve=False)
    return str(settings["subdir"])


def with_tokens(template: str, values: dict[str, str]) -> str:
    """Replace each token, a key of `values`, in a template by its value."""
    for token, value in values.items():
        template = template.replace(token, value)
    return template


def name_of_run(overrides: list[Override]) -> str:
    """Return the name of a run's directory: its overrides, sorted and joined by commas.

    Paths, settings of Hydra and the executor, and overrides of more than LONGEST_WORD bytes are left out, as are those
    that would make the name longer than LONGEST_NAME bytes.
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
    """Raise ConfigError where a directory for output holds a run or a sweep, or can't be written to.

    key: the argument that sets the directory, for messages.
    """
    if holds_run(directory):
        raise ConfigError(f"{directory} holds a run already: choose another directory")
    check_place(directory, key)


def check_place(directory: Path, key: str) -> None:
    """Raise ConfigError where a directory, existing or not, has an invalid name, can't be written to, or its disk is
    full.

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
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK) or is_read_only(parent):
        raise ConfigError(f"{name} cannot be made: {parent} is not a folder one can write to")
    free = free_bytes(parent)
    if free is not None and free < SMALLEST_DISK:
        raise ConfigError(f"{name} cannot be filled: {free / 2**20:.1f} MiB are free on disk")


def is_read_only(folder: Path) -> bool:
    """Return whether a folder's file system is mounted read-only; False where the system does not say."""
    with suppress(OSError):
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    return False


def free_bytes(folder: Path) -> int | None:
    """Return the free bytes of a folder's file system; None where it reports no size, as cloud storage does."""
    with suppress(OSError):
        usage = shutil.disk_usage(folder)
        return usage.free if usage.total else None
    return None
