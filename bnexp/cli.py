"""The commands. `bnexp train` and `bnexp compare` hand their words to Hydra; this module checks them first.

A check belongs where the input comes in: every job of a sweep is composed, typed and range-checked before the first
one starts, and before any directory is made. Imports are lazy, so that --help and completion need no torch.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bnexp.config import RunConfig

HELP = """\
bnexp: what does normalization do to training?

  bnexp train [OVERRIDE …]            one run: bnexp train norm=batch act=sigmoid
  bnexp train -m [OVERRIDE …]         a sweep: bnexp train -m norm=none,batch 'seed=range(5)'
  bnexp compare [OVERRIDE …] [by=KEY] a sweep, then the paired comparison: table and figure
  bnexp report DIR … [by=KEY]         the comparison of runs that are there
  bnexp data [status|fetch] [dataset=NAME …]

bnexp train --help lists every choice and key; bnexp train OVERRIDE … --cfg job prints a configuration.
eval "$(bnexp -sc install=bash)" installs completion (or zsh, fish).
"""
PASSED_ON = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")
LONGEST_NAME = 200  # bytes of a run's directory name; file systems allow 255
SMALLEST_DISK = 16 * 2**20  # bytes free, under which no run is started


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Exit status: 0 done, 1 a run failed, 2 the user's words are off, 130 interrupted."""
    try:
        return dispatch(arguments)
    except KeyboardInterrupt as error:
        return 128 + getattr(error, "signum", 2)
    except Exception as error:
        from bnexp.console import complain
        from bnexp.messages import explain

        status, line = explain(error)
        complain(line)
        return status


def dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"bnexp {version('bnexp')}")
        return 0
    if arguments[0] in ("-sc", "--shell-completion"):
        return complete(arguments)
    if arguments[0] not in COMMANDS:
        from bnexp.messages import unknown_command

        raise unknown_command(arguments[0], list(COMMANDS))
    return COMMANDS[arguments[0]](arguments[1:])


def conf_dir() -> Path:
    """conf/ beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    return next(path for path in (package.parent / "conf", package / "conf") if (path / "config.yaml").exists())


# ---- train and compare


@dataclass(frozen=True)
class Plan:
    """A command line as Hydra will run it, every job of it checked."""

    flags: list[str]
    overrides: list[str]
    runs: list[RunConfig]


def train(arguments: list[str]) -> int:
    flags, overrides = separate(arguments)
    if any(flag.split("=")[0] in PASSED_ON for flag in flags):
        return hand_to_hydra([*flags, *overrides], lambda config: None)
    checked = plan(flags, overrides)
    hand_to_hydra([*checked.flags, *checked.overrides], train_one)
    return 0


def compare(arguments: list[str]) -> int:
    by, arguments = take_by(arguments)
    flags, overrides = separate(arguments)
    multirun = {"-m", "--multirun"}.isdisjoint(flags)
    checked = plan([*flags, "-m"] if multirun else flags, overrides)
    from bnexp.report import check_by

    check_by(by, [config.as_dict() for config in checked.runs])
    directories: list[Path] = []

    def task(config: DictConfig) -> str:
        from hydra.core.hydra_config import HydraConfig

        directories[:] = [Path(HydraConfig.get().sweep.dir)]
        return train_one(config)

    hand_to_hydra([*checked.flags, *checked.overrides], task)
    from bnexp.report import report as make_report

    make_report(directories, by)
    return 0


def hand_to_hydra(arguments: list[str], task: Callable[[Any], Any]) -> int:
    import hydra

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, to be said in a line
    sys.argv = ["bnexp", *arguments]
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    return 0


def train_one(config: DictConfig) -> str:
    """Hydra's task: one run into the directory that Hydra made for it."""
    import logging

    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from bnexp.config import ConfigError, parse
    from bnexp.console import TrainingDisplay, describe, say
    from bnexp.runs import Launch
    from bnexp.train import run_alone

    context = HydraConfig.get()
    directory = Path(context.runtime.output_dir)
    title = context.job.override_dirname or "defaults"
    job = 0 if OmegaConf.is_missing(context.job, "num") else context.job.num  # set in sweeps alone
    launch = Launch(shortest(directory), list(context.overrides.task), job)
    try:
        with TrainingDisplay(title) as display:
            summary = run_alone(parse(config), launch, display)
    except (ConfigError, OSError):
        raise
    except Exception:
        logging.getLogger("bnexp").exception("%s failed", title)
        raise
    say(f"{title}: {describe(summary)} → {launch.directory}")
    return str(summary["status"])


def shortest(directory: Path) -> Path:
    return directory.relative_to(Path.cwd()) if directory.is_relative_to(Path.cwd()) else directory


def separate(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags (with their values) and the overrides: flags must come first, people type them anywhere."""
    from hydra._internal.utils import get_args_parser

    from bnexp.config import ConfigError

    def refuse(message: str) -> None:
        raise ConfigError(message)

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign,assignment]
    overrides = parser.parse_intermixed_args(arguments).overrides
    return [word for word in arguments if word not in overrides], overrides


def plan(flags: list[str], overrides: list[str]) -> Plan:
    """Compose and check every job; name the runs after what is swept. Raises what `explain` says in a line."""
    from hydra import initialize_config_dir

    searchpath = [f"hydra.searchpath=[file://{Path(path).absolute()}]" for path in flag_values(flags, "config-dir")]
    name = next(iter(flag_values(flags, "config-name")), "config")
    multirun = not {"-m", "--multirun"}.isdisjoint(flags)
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        jobs, naming = split_jobs(overrides) if multirun else ([overrides], name_run(overrides))
        composed = [compose_job(name, [*job, *searchpath, *naming], multirun) for job in jobs]
    runs = [config for config, _ in composed]
    check_runs(runs)
    check_output(composed[0][1])
    return Plan(flags, [*overrides, *naming], runs)


def flag_values(flags: list[str], name: str) -> list[str]:
    """Values of --name VALUE, --name=VALUE and its short form."""
    short = "-" + "".join(part[0] for part in name.split("-"))
    found = [flag.split("=", 1)[1] for flag in flags if flag.startswith(f"--{name}=")]
    return found + [value for flag, value in itertools.pairwise(flags) if flag in (f"--{name}", short)]


def split_jobs(overrides: list[str]) -> tuple[list[list[str]], list[str]]:
    """The overrides of every job of a sweep, and the words that name its directories after the swept keys."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader()).parse_overrides(overrides)
    [batch] = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    jobs = [list(job) for job in batch]
    swept = [override.key_or_group for override in parsed if override.is_sweep_override()]
    names = [",".join(word for word in job if word.split("=")[0].lstrip("+~") in swept) for job in jobs]
    if not swept or any("/" in name or len(name.encode()) > LONGEST_NAME for name in names):
        return jobs, ["hydra.sweep.subdir=${hydra:job.num}"]
    return jobs, excluded([override.key_or_group for override in parsed if not override.is_sweep_override()])


def name_run(overrides: list[str]) -> list[str]:
    """Words that keep paths and long values out of a run's directory name."""
    return excluded(
        [w.split("=")[0].lstrip("+~") for w in overrides if "/" in w or len(w.encode()) > LONGEST_NAME // 4]
    )


def excluded(keys: list[str]) -> list[str]:
    from bnexp.config import RunConfig
    from bnexp.messages import known_keys

    named = [key for key in dict.fromkeys(keys) if key in known_keys(RunConfig())]
    return [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(named)}]"] if named else []


def compose_job(name: str, overrides: list[str], multirun: bool = False) -> tuple[RunConfig, Path]:
    """A job's configuration, and the directory that will hold it or its sweep."""
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import open_dict

    from bnexp.config import parse

    config = compose(name, overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(config)  # the directory's name asks for the job's
    directory = Path(config.hydra.sweep.dir if multirun else config.hydra.run.dir)
    HydraConfig.instance().cfg = None
    with open_dict(config):
        del config["hydra"]
    return parse(config), directory


def check_runs(runs: list[RunConfig]) -> None:
    from bnexp.train import check

    for config in sorted(runs, key=lambda config: str(config.dataset)):  # each data set is read once
        check(config)


def check_output(directory: Path) -> None:
    """Refuse a directory that holds a run, or where nothing can be written, before it is made."""
    import shutil

    from bnexp.config import ConfigError
    from bnexp.runs import is_run

    if is_run(directory):
        raise ConfigError(f"{directory} holds a run already: choose another directory")
    parent = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK) or os.statvfs(parent).f_flag & os.ST_RDONLY:
        raise ConfigError(f"the run's directory {directory} cannot be made: {parent} is not a folder one can write to")
    free = shutil.disk_usage(parent).free
    if free < SMALLEST_DISK:
        raise ConfigError(f"the run's directory {directory} cannot be filled: {free / 2**20:.1f} MiB are free on disk")


# ---- report, data, completion


def take_by(arguments: list[str]) -> tuple[str | None, list[str]]:
    chosen = [word.removeprefix("by=") for word in arguments if word.startswith("by=")]
    return (chosen[-1] if chosen else None), [word for word in arguments if not word.startswith("by=")]


def report(arguments: list[str]) -> int:
    by, names = take_by(arguments)
    from bnexp.config import ConfigError

    if not names:
        raise ConfigError("report needs a directory: bnexp report results/sweeps/…")
    for name in names:
        if not Path(name).is_dir():
            raise ConfigError(f"{name} is not a directory")
    from bnexp.report import report as make_report

    make_report([Path(name) for name in names], by)
    return 0


def data(arguments: list[str]) -> int:
    from bnexp.config import ConfigError

    action, overrides = (
        (arguments[0], arguments[1:]) if arguments and "=" not in arguments[0] else ("status", arguments)
    )
    if action not in ("status", "fetch"):
        raise ConfigError(f"data {action} is unknown: choose from status, fetch")
    from hydra import initialize_config_dir

    from bnexp.console import say, show_table
    from bnexp.data import DATASETS, find_loader, load_data

    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        if action == "fetch":
            config = compose_job("config", overrides)[0].dataset
            loaded = load_data(config)
            say(f"{config.name}: {len(loaded.train):,} + {len(loaded.validation):,} + {len(loaded.test):,} images")
            return 0
        chosen = any(word.startswith("dataset=") for word in overrides)
        jobs = [overrides] if chosen else [[f"dataset={name}", *overrides] for name in DATASETS]
        configs = [compose_job("config", job)[0].dataset for job in jobs]
    loaders = [find_loader(config.name) for config in configs]
    rows = [
        [config.name, loader.problem(config) or "ready", loader.location(config)]
        for config, loader in zip(configs, loaders, strict=True)
    ]
    show_table("data sets", ["dataset=", "status", "where"], rows)
    return 0


def complete(arguments: list[str]) -> int:
    """Hydra's completion, which knows nothing of commands: complete them here, take them out of its line there."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if any(word.startswith("query=") for word in arguments) and words[1:2] != [] and words[1] in COMMANDS:
        if line.endswith(words[1]) and len(words) == 2:
            print(words[1])
            return 0
        shortened = line.replace(f" {words[1]}", "", 1)
        os.environ["COMP_POINT"] = str(
            max(0, int(os.environ.get("COMP_POINT", len(line))) - len(line) + len(shortened))
        )
        os.environ["COMP_LINE"] = shortened
    elif any(word.startswith("query=") for word in arguments):
        print(*(name for name in COMMANDS if len(words) < 2 or name.startswith(words[1])), sep="\n")
        return 0
    return hand_to_hydra(arguments, lambda config: None)


COMMANDS: dict[str, Callable[[list[str]], int]] = {"train": train, "compare": compare, "report": report, "data": data}

if __name__ == "__main__":
    main()
