"""What a command line asks for: every job of it composed, typed and range-checked before the first one starts, and
before any directory is made.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, Quote, QuotedString
from omegaconf import DictConfig, OmegaConf, open_dict

from bnexp.config import ConfigError, RunConfig, known_keys, parse, require
from bnexp.console import say
from bnexp.runs import Launch, config_digest, holds_run

if TYPE_CHECKING:
    from bnexp.sweep import Job, Options, SweepPlan

LONGEST_NAME = 200  # bytes of a run's directory name; file systems allow 255
LONGEST_WORD = 50  # bytes of an override that is part of it
SMALLEST_DISK = 16 * 2**20  # bytes free, under which no run is started


@dataclass(frozen=True)
class Plan:
    """A command line as Hydra will run it, and what it makes, all of it checked."""

    arguments: list[str]
    runs: list[RunConfig]
    directory: Path  # of the run or the sweep
    sweep: "SweepPlan"
    jobs: "list[Job]"  # of a sweep, those that are finished included
    options: "Options"
    goes_on: bool  # in a directory that holds some of these runs


def conf_dir() -> Path:
    """conf/ beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    return next(path for path in (package.parent / "conf", package / "conf") if (path / "config.yaml").exists())


def separate(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags (with their values) and the overrides: flags must come first, people type them anywhere."""

    def refuse(message: str) -> None:
        raise ConfigError(message)

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign,assignment]
    found = parser.parse_intermixed_args(arguments)
    if found.resolve and found.cfg is None:
        refuse("--resolve is not allowed without --cfg")
    if found.config_dir is not None and not Path(found.config_dir).is_dir():
        refuse(f"--config-dir {found.config_dir} not found: it must be a folder")
    overrides: list[str] = found.overrides
    return [word for word in arguments if word not in overrides], overrides


def plan(flags: list[str], overrides: list[str], resume: bool = False) -> Plan:
    """Compose and check every job; name the runs after what is swept. `resume`: leave out the runs that the directory
    already holds, finished. Raises what `explain` says in a line.
    """
    from bnexp.parallel import processes  # noqa: PLC0415
    from bnexp.resume import check_holds, left_to_do  # noqa: PLC0415
    from bnexp.sweep import parse_options, plan_sweep  # noqa: PLC0415 - torch is loaded once the words themselves are in order

    searchpath = [f"hydra.searchpath=[file://{Path(path).absolute()}]" for path in flag_values(flags, "config-dir")]
    name = next(iter(flag_values(flags, "config-name")), "config")
    multirun = not {"-m", "--multirun"}.isdisjoint(flags)
    with configurations():
        words = parse_overrides(overrides)
        jobs = split_jobs(words) if multirun else [overrides]
        naming = name_sweep(words, jobs) if multirun else name_run(words)
        first = compose(name, [*jobs[0], *searchpath, *naming])
        directory, launcher = output_directory(first, multirun), first.hydra.launcher
        runs = compose_jobs(name, words, jobs, [*searchpath, *naming])
    sweeper = first.hydra.runtime.choices["hydra/sweeper"]
    require(sweeper == "bnexp", "hydra/sweeper", sweeper, "bnexp, which trains what was planned")
    ours = ("workers", "max_stack", "submit")
    options = parse_options(**{key: launcher[key] for key in ours if key in launcher})
    check_runs(runs)
    check_place(directory)
    twice = len({config_digest(config) for config in runs}) < len(runs)
    require(not twice, "the sweep", " ".join(overrides), "it has the same run more than once")
    goes_on = resume or check_holds(directory, runs)
    if goes_on and processes() > 1:
        raise ConfigError(f"{directory} holds this run already, which cannot go on under torchrun: choose another one")
    place = QuotedString(str(directory), Quote.single).with_quotes()
    fixed = [f"hydra.{'sweep' if multirun else 'run'}.dir={place}"]  # composed again, it would have a later time in it
    every = make_jobs(words, jobs, runs)
    sweep = plan_sweep(left_to_do(every, directory) if goes_on else every, options)
    words_of_run = [*flags, *overrides, *naming, *fixed]
    return Plan(words_of_run, runs, directory, sweep, every if multirun else [], options, goes_on)


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


@contextmanager
def configurations() -> Iterator[None]:
    """Hydra, reading conf/; inside, `compose` works."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        yield


def compose(name: str, overrides: list[str]) -> DictConfig:
    """A job's configuration, with Hydra's own."""
    try:
        return hydra.compose(name, overrides, return_hydra_config=True)
    except ValueError as error:  # Hydra's word for some values that are off, as norm=null
        raise ConfigError(f"{' '.join(overrides)}: {error}") from error


def compose_run(overrides: list[str]) -> RunConfig:
    return parse(job_part(compose("config", overrides)))


def compose_jobs(name: str, words: list[Override], jobs: list[list[str]], fixed: list[str]) -> list[RunConfig]:
    """Every job's configuration. Jobs that choose the same files share a composition, which takes 0.1 s; the swept
    values are then set as Hydra sets them.
    """
    loader = GlobalHydra.instance().config_loader()
    swept = [word for word in words if word.is_sweep_override() and word.type is OverrideType.CHANGE]
    values = {word.key_or_group for word in swept if not loader.get_group_options(word.key_or_group)}
    bases: dict[tuple[str, ...], DictConfig] = {}
    runs = []
    for job in jobs:
        own = [word for word in job if word.split("=")[0] in values]
        choices = tuple(word for word in job if word not in own)
        if choices not in bases:
            bases[choices] = job_part(compose(name, [*choices, *fixed]))
        config = deepcopy(bases[choices])
        ConfigLoaderImpl._apply_overrides_to_config(parse_overrides(own), config)
        runs.append(parse(config))
    return runs


def job_part(config: DictConfig) -> DictConfig:
    with open_dict(config):
        del config["hydra"]
    return config


def output_directory(config: DictConfig, multirun: bool) -> Path:
    HydraConfig.instance().set_config(config)  # the directory's name asks for the job's
    directory = Path(config.hydra.sweep.dir if multirun else config.hydra.run.dir)
    HydraConfig.instance().cfg = None
    return directory


def launch_here() -> Launch:
    """Inside a job: where its run goes."""
    context = HydraConfig.get()
    number = 0 if OmegaConf.is_missing(context.job, "num") else context.job.num  # set in sweeps alone
    return Launch(shortest(Path(context.runtime.output_dir)), list(context.overrides.task), number)


def shortest(directory: Path) -> Path:
    return directory.relative_to(Path.cwd()) if directory.is_relative_to(Path.cwd()) else directory


def flag_values(flags: list[str], name: str) -> list[str]:
    """Values of --name VALUE, --name=VALUE and its short form."""
    short = "-" + "".join(part[0] for part in name.split("-"))
    found = [flag.split("=", 1)[1] for flag in flags if flag.startswith(f"--{name}=")]
    return found + [value for flag, value in pairwise(flags) if flag in (f"--{name}", short)]


# ---- jobs and their names


def parse_overrides(overrides: list[str]) -> list[Override]:
    words = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader()).parse_overrides(overrides)
    for word in words:
        if not word.key_or_group:
            raise ConfigError(f"{word.input_line} cannot be read: an override is KEY=VALUE")
        if word.is_delete():
            raise ConfigError(f"{word.input_line} is not allowed: a key can be changed, not deleted")
    return words


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
    """Name the directories of a sweep's runs after the swept keys alone, or by number where that makes no name."""
    swept = [word.key_or_group for word in words if word.is_sweep_override()]
    names = [",".join(word for word in job if word.split("=")[0].lstrip("+") in swept) for job in jobs]
    if not swept or any("/" in name or len(name.encode()) > LONGEST_NAME for name in names):
        return ["hydra.sweep.subdir=${hydra:job.num}"]
    return leave_out([word.key_or_group for word in words if not word.is_sweep_override()])


def name_run(words: list[Override]) -> list[str]:
    """Name a run's directory after its overrides, without paths, long values and what is too much."""
    left_out, length = [], 0
    for word in words:
        size = len(str(word.input_line).encode())
        if "/" in str(word.input_line) or size > LONGEST_WORD or length + size > LONGEST_NAME:
            left_out.append(word.key_or_group)
        else:
            length += size + 1
    return leave_out(left_out)


def leave_out(keys: list[str]) -> list[str]:
    known = [key for key in dict.fromkeys(keys) if key in known_keys()]
    return [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(known)}]"] if known else []


# ---- checks


def check_runs(runs: list[RunConfig]) -> None:
    from bnexp.train import check  # noqa: PLC0415 - torch is loaded once the words themselves are in order

    ordered = sorted(runs, key=lambda config: str(config.dataset))  # each data set is read once
    for line in dict.fromkeys(line for config in ordered for line in check(config)):
        say(line)


def check_output(directory: Path) -> None:
    """Refuse to write a table where runs are."""
    if holds_run(directory):
        raise ConfigError(f"{directory} holds a run already: choose another directory")
    check_place(directory)


def check_place(directory: Path) -> None:
    """Refuse a directory where nothing can be written, before it is made."""
    parent = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK) or os.statvfs(parent).f_flag & os.ST_RDONLY:
        raise ConfigError(f"the run's directory {directory} cannot be made: {parent} is not a folder one can write to")
    free = shutil.disk_usage(parent).free
    if free < SMALLEST_DISK:
        raise ConfigError(f"the run's directory {directory} cannot be filled: {free / 2**20:.1f} MiB are free on disk")
