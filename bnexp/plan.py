"""What a command line asks for: every job of it composed, typed and range-checked before the first one starts, and
before any directory is made.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override, Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from bnexp.composition import (
    check_hydra,
    compose,
    compose_jobs,
    configurations,
    in_words,
    parse_overrides,
    resolving,
)
from bnexp.config import PATHS, ConfigError, RunConfig, known_keys, literal, require, require_path
from bnexp.files import LONGEST_NAME, is_name, is_utf8, shortest
from bnexp.runs import config_digest, holds_run
from bnexp.words import Words

if TYPE_CHECKING:
    from bnexp.datasets.images import Contents
    from bnexp.sweep import Job, Options, SweepPlan

LONGEST_PART, LONGEST_PATH = 255, 3800  # bytes of a name, and of a directory: file systems allow 4096 of a path
LONGEST_WORD = 50  # bytes of an override that is part of it
SMALLEST_DISK = 16 * 2**20  # bytes free, under which no run is started


@dataclass(frozen=True)
class Plan:
    """What a command line makes, all of it checked."""

    words: Words
    overrides: list[str]  # of a sweep, for Hydra: the user's, and those that name its directories
    composition: DictConfig  # as Hydra has it, of the run or the sweep's first
    runs: list[RunConfig]
    directory: Path  # of the run or the sweep
    sweep: "SweepPlan"
    jobs: "list[Job]"  # of a sweep, those that are finished included
    names: list[str]  # of their directories, unless the user names these
    options: "Options"
    goes_on: bool  # in a directory that holds some of these runs
    contents: "list[Contents]"  # of the image folders among their data sets


def plan(words: Words, resume: bool = False, timed: bool = True) -> Plan:
    """Compose and check every job; name the runs after what is swept. `resume`: leave out the runs that the directory
    already holds, finished; `timed`: estimate the seconds. Raises what `explain` says in a line.
    """
    from bnexp.parallel import processes  # noqa: PLC0415
    from bnexp.resume import check_holds, check_runs, left_to_do, runs_of, with_compilation  # noqa: PLC0415
    from bnexp.sweep import plan_sweep  # noqa: PLC0415 - torch is loaded once the words themselves are in order

    overrides, multirun = words.overrides, words.multirun
    with configurations(words.config_dir), in_words(overrides):
        parsed = parse_overrides(overrides)
        jobs = split_jobs(parsed) if multirun else [overrides]
        naming = name_sweep(parsed, jobs) if multirun else name_run(parsed)
        runs, compositions = compose_jobs(words.config_name, jobs, naming)
    with in_words(overrides):
        check_hydra(compositions, {*overrides, *naming, *(word for job in jobs for word in job)})
        directory, options = output_directory(compositions[0], multirun), launcher_options(compositions[0].hydra)
    contents = check_runs(runs)
    check_place(directory, place_key(multirun))
    twice = len({config_digest(config) for config in runs}) < len(runs)
    require(not twice, "the sweep", " ".join(overrides), "it has the same run more than once")
    own_names = not multirun or any(word.key_or_group == "hydra.sweep.subdir" for word in parsed)
    names = [] if own_names else names_of(parsed, jobs)
    goes_on = resume or check_holds(directory, runs, names, is_numbered(compositions[0]))
    if goes_on and processes() > 1:
        raise ConfigError(f"{directory} holds this run already, which cannot go on under torchrun: choose another one")
    every = make_jobs(parsed, jobs, runs)
    left = left_to_do(every, directory) if goes_on else every
    sweep = plan_sweep(with_compilation(left, runs_of(directory) if goes_on else {}), options, timed)
    words_for_hydra = [*overrides, *naming, *fixed_place(directory)]
    jobs_there = every if multirun else []
    planned = (compositions[0], runs, directory, sweep, jobs_there, names, options, goes_on, contents)
    return Plan(words, words_for_hydra, *planned)


def place_key(multirun: bool) -> str:
    """Of a sweep's or a run's directory."""
    return "hydra.sweep.dir" if multirun else "hydra.run.dir"


def fixed_place(directory: Path) -> list[str]:
    """In words: composed again, a sweep's directory would have a later time in its name."""
    place = QuotedString(literal(str(directory)), Quote.single).with_quotes()
    return [f"hydra.sweep.dir={place}", "hydra.mode=MULTIRUN"]


def check_question(words: Words) -> list[str]:
    """What Hydra is asked about (--help, --cfg …) it composes, and sets up its log for: so it is checked likewise.
    Returns the arguments for Hydra; of a sweep, its first job's.
    """
    with configurations(words.config_dir), in_words(words.overrides):
        parsed = parse_overrides(words.overrides)
        overrides = split_jobs(parsed)[0] if words.multirun else words.overrides
        single = [word for word in overrides if not parse_overrides([word])[0].is_sweep_override()]
        composition = compose(words.config_name, single)
    check_hydra([composition], {*single})
    return [*words.flags, *overrides]


def make_jobs(words: list[Override], jobs: list[list[str]], runs: list[RunConfig]) -> "list[Job]":
    from bnexp.sweep import Job  # noqa: PLC0415

    hydras = {word.get_key_element() for word in words if word.is_hydra_override()}
    common = set(jobs[0]).intersection(*jobs) if len(jobs) > 1 else set()
    return [
        Job(
            number,
            words=[word for word in job if word.split("=")[0] not in hydras],
            overrides=[word for word in job if word not in common],
            config=config,
        )
        for number, (job, config) in enumerate(zip(jobs, runs, strict=True))
    ]


def output_directory(config: DictConfig, multirun: bool) -> Path:
    with resolving(config):  # the directory's name asks for the job's
        return Path(config.hydra.sweep.dir if multirun else config.hydra.run.dir)


def launcher_options(settings: DictConfig) -> "Options":
    from bnexp.sweep import parse_options  # noqa: PLC0415

    sweeper = settings.runtime.choices["hydra/sweeper"]
    require(sweeper == "bnexp", "hydra/sweeper", sweeper, "bnexp, which trains what was planned")
    ours = ("workers", "max_stack", "submit")
    return parse_options(**{key: settings.launcher[key] for key in ours if key in settings.launcher})


# ---- jobs and their names


def split_jobs(words: list[Override]) -> list[list[str]]:
    """The overrides of every job of a sweep, as Hydra's sweeper will make them."""
    [batch] = BasicSweeper.split_arguments(words, max_batch_size=None)
    jobs = [list(job) for job in batch]
    line = " ".join(str(word.input_line) for word in words if word.is_sweep_override())
    if not jobs:
        raise ConfigError(f"{line} is an empty sweep: give each key a value at least")
    twice = next((job for job in jobs if jobs.count(job) > 1), None)
    if twice is not None:
        raise ConfigError(f"{line} has the same run more than once: {' '.join(twice)}")
    return jobs


def name_sweep(words: list[Override], jobs: list[list[str]]) -> list[str]:
    """Words that have Hydra name the directories of a sweep's runs so."""
    if names_of(words, jobs)[0] == "0":
        return ["hydra.sweep.subdir=${hydra:job.num}"]
    return leave_out([word.key_or_group for word in words if not word.is_sweep_override()])


def names_of(words: list[Override], jobs: list[list[str]]) -> list[str]:
    """After the swept keys alone, or numbers where that makes no name."""
    swept = [word.key_or_group for word in words if word.is_sweep_override()]
    names = [",".join(sorted(word for word in job if word.split("=")[0].lstrip("+") in swept)) for job in jobs]
    return names if all(map(is_name, names)) else [str(number) for number in range(len(jobs))]


def is_numbered(config: DictConfig) -> bool:
    """Whether the directories of a sweep's runs have the job's number in their names."""
    return "job.num}" in str(OmegaConf.to_container(config.hydra.sweep, resolve=False))


def name_run(words: list[Override]) -> list[str]:
    """Name a run's directory after its overrides, without paths, long values and what is too much."""
    left_out, length = [], 0
    for word in words:
        line = str(word.input_line)
        size, is_path = len(os.fsencode(line)), word.key_or_group in PATHS or "/" in line
        if is_path or size > LONGEST_WORD or length + size > LONGEST_NAME:
            left_out.append(word.key_or_group)
        else:
            length += size + 1
    return leave_out(left_out)


def leave_out(keys: list[str]) -> list[str]:
    known = [key for key in dict.fromkeys(keys) if key in known_keys()]
    return [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(known)}]"] if known else []


# ---- checks


def check_output(directory: Path, key: str) -> None:
    """Refuse to write a table where runs are."""
    if holds_run(directory):
        raise ConfigError(f"{directory} holds a run already: choose another directory")
    check_place(directory, key)


def check_place(directory: Path, key: str) -> None:
    """Refuse a directory where nothing can be written, before it is made. `key`: what the user names it by."""
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
    """As far as its file system says."""
    with suppress(OSError):
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    return False


def free_bytes(folder: Path) -> int | None:
    """None where the file system doesn't say: one made of a cloud's storage has no size, or calls it 0."""
    with suppress(OSError):
        usage = shutil.disk_usage(folder)
        return usage.free if usage.total else None
    return None
