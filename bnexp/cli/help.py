"""Answer --help, --cfg, --info and completion of a shell, without training anything."""

import os
import sys
import textwrap
from dataclasses import dataclass
from shutil import get_terminal_size

import hydra
from omegaconf import DictConfig, OmegaConf

from bnexp.cli.arguments import Arguments
from bnexp.cli.compose import Composition, configurations, naming_overrides
from bnexp.cli.overrides import conf_dir, group_options, parse_overrides, split_jobs
from bnexp.runs.config import GROUPS, explain_keys

WIDEST = 120  # columns


@dataclass(frozen=True)
class Page:
    """The help of a command.

    usage: its syntax. purpose: one or two sentences. arguments: the explanation of each argument, with its default.
    example: one command line.
    """

    usage: str
    purpose: str
    arguments: dict[str, str]
    example: str


OVERRIDE = "GROUP=CHOICE or KEY=VALUE, as listed below"
BY = "the key whose values are the arms (default: norm, or else the first that differs)"
OUT = "where the files go (default: the directory itself; needed for several)"
DRY_RUN = "only print the plan and about how long it takes (default: false)"
PAGES = {
    "train": Page(
        "bnexp train [-m] [OVERRIDE …] [dry_run=true]",
        "Train one run; with -m a sweep over every combination of the values that overrides list.",
        {
            "OVERRIDE": OVERRIDE,
            "-m, --multirun": "a sweep: norm=none,batch lists values, 'seed=range(5)' too",
            "dry_run=true": DRY_RUN,
            "--cfg job": "print the configuration and run nothing (hydra, all: with Hydra's part)",
            "--config-dir DIR": "a folder with configurations of your own, in addition to those of bnexp",
            "--config-name NAME": "the primary configuration (default: config)",
            "--info": "how Hydra composes the configuration",
        },
        "bnexp train norm=batch act=sigmoid steps=2000",
    ),
    "compare": Page(
        "bnexp compare [OVERRIDE …] [by=KEY] [dry_run=true]",
        "Train a sweep, then compare its arms, paired by seed: table, figure and page.",
        {"OVERRIDE": OVERRIDE, "by=KEY": BY, "dry_run=true": DRY_RUN},
        "bnexp compare experiment=demo norm=none,batch 'seed=range(6)'",
    ),
    "resume": Page(
        "bnexp resume DIR … [dataset.root=DIR] [dataset.path=DIR] [init_from=PATH]",
        "Resume an interrupted run or sweep; the result is bit-identical.",
        {
            "DIR": "the directory of a run or a sweep",
            "dataset.root=DIR": "the data set's present folder (default: the recorded one); likewise the others",
        },
        "bnexp resume results/sweeps/mine",
    ),
    "status": Page(
        "bnexp status [DIR …] [--watch] [--json]",
        "Show how far a sweep is, or which sweeps and runs there are below a folder and in which state, from their "
        "directories: on whatever machine they train, and after their command has ended.",
        {
            "DIR": "the directory of a run or a sweep, or a folder above such (default: results)",
            "--watch": "until all runs have ended (default: once)",
            "--json": "every run, for programs",
        },
        "bnexp status results/sweeps/mine --watch",
    ),
    "clean": Page(
        "bnexp clean DIR … [--failed] [--checkpoints] [--older-than AGE] [--yes]",
        "Remove runs, or checkpoints of runs, below a folder: never of one that is running, and no files of others.",
        {
            "DIR": "the directory of a run or a sweep, or a folder above such",
            "--failed": "runs that failed alone",
            "--checkpoints": "the checkpoints of runs that have ended alone; their results stay",
            "--older-than AGE": "runs whose last change is longer ago: 12h, 30d, 8w",
            "--yes": "remove them (default: only show which)",
        },
        "bnexp clean results --checkpoints --older-than 30d",
    ),
    "report": Page(
        "bnexp report DIR … [by=KEY] [out=DIR]",
        "Compare existing runs, paired by seed: table, figure and page.",
        {"DIR": "directories of runs or sweeps", "by=KEY": BY, "out=DIR": OUT},
        "bnexp report results/sweeps/mine by=norm",
    ),
    "export": Page(
        "bnexp export DIR … --to csv|parquet|latex [by=KEY] [out=DIR]",
        "Write runs for other programs: curves and summaries as tables, or the comparison's tables and figures for "
        "LaTeX.",
        {
            "DIR": "directories of runs or sweeps",
            "--to FORMAT": "csv, parquet (curves and runs, a table each) or latex (compare.tex, figures as PDF)",
            "by=KEY": BY,
            "out=DIR": OUT,
        },
        "bnexp export results/sweeps/mine --to csv",
    ),
    "probe": Page(
        "bnexp probe DIR … [by=KEY] [out=DIR]",
        "Measure the loss around the checkpoints of runs: its smoothness, and internal covariate shift.",
        {"DIR": "directories of runs or sweeps, trained with eval.keep=true", "by=KEY": BY, "out=DIR": OUT},
        "bnexp probe results/sweeps/mine",
    ),
    "reproduce": Page(
        "bnexp reproduce [CLAIM …] [--list] [--block SEED] [--seeds N] [--out DIR]",
        "Train the sweeps of published claims, and judge the claims.",
        {
            "CLAIM": "a claim's id, or what ids begin with: udacity, wiki.sooner (default: all)",
            "--list": "show the claims, and about how long their remaining runs take here",
            "--block SEED": "the block of seeds to run: 0 or 1000 (default: both)",
            "--seeds N": "seeds of an arm in a block, SEED to SEED + N - 1 (default: as each sweep says, mostly 10)",
            "--out DIR": "where claims.json, README.md and figures/ go (default: results/sweeps/claims)",
        },
        "bnexp reproduce wiki --block 0",
    ),
    "bench": Page(
        "bnexp bench [OVERRIDE …] [modes=LIST] [rounds=N] [seconds=N] [stack=N] [out=DIR]",
        "Measure steps a second of every norm against none, uncompiled, compiled and stacked, in interleaved rounds.",
        {
            "OVERRIDE": "the runs to measure, as in bnexp train; every combination of listed values",
            "modes=LIST": "of eager, compiled and stacked (default: all)",
            "rounds=N": "rounds, of which the median is taken (default: 9)",
            "seconds=N": "seconds of a measurement (default: 0.3)",
            "stack=N": "runs of a stack (default: 8)",
            "out=DIR": "where table and figure go (default: results/bench/TIME)",
        },
        "bnexp bench dataset=digits norm=none,batch",
    ),
    "data": Page(
        "bnexp data [status|fetch] [dataset=NAME] [dataset.root=DIR]",
        "Show which data sets are ready (status, the default), or download, check and decode one (fetch).",
        {"dataset=NAME": "the data set (default: all of them)", "dataset.root=DIR": "its folder (default: data)"},
        "bnexp data fetch dataset=mnist",
    ),
    "check": Page(
        "bnexp check GROUP/NAME [OVERRIDE …]",
        "Check whether a plugin's norm, activation, architecture, data set, optimizer or initialization does what "
        "bnexp relies on: shapes, gradients, same bytes again, when resumed, and in a stack.",
        {"GROUP/NAME": "what to check: norm/NAME, act/…, arch/…, dataset/…, optim/…, init/…", "OVERRIDE": OVERRIDE},
        "bnexp check norm/batch",
    ),
}


def command_help(command: str) -> str:
    """Return the help of a command, wrapped to the width of the terminal.

    That of train and compare also lists the choices and keys of a configuration.
    """
    page = PAGES[command]
    parts = [f"{page.usage}\n", *textwrap.wrap(page.purpose, width()), "", *columns(page.arguments), ""]
    parts += ["Example:", f"  {page.example}"]
    parts += help_of_keys() if command in ("train", "compare") else []
    return "\n".join(parts) + "\n"


def help_of_keys() -> list[str]:
    """Return lines with every choice of every group, and with defaults and explanations of keys.

    These are all keys of a run, and the main ones of the executor and Hydra.
    """
    with configurations():
        choices = {f"{group}=": ", ".join(group_options(group, None)) for group in (*GROUPS, "executor")}
    keys = {f"{key.name}={key.default}": key.help for key in explain_keys()}
    extra = {
        "executor.workers=auto": "worker processes: auto, as many as there are cores or CUDA devices",
        "executor.max_stack=auto": "the most runs of a stack: auto, as many as a core's caches hold",
        "hydra.run.dir=DIR": "the directory of a run (default: results/runs/DATE/TIME_OVERRIDES)",
        "hydra.sweep.dir=DIR": "the directory of a sweep (default: results/sweeps/DATE_TIME)",
        "hydra.sweep.subdir=NAME": "the folder of a run in it (default: its values of the swept keys)",
        "hydra.verbose=true": "log more to bnexp.log (default: false)",
    }
    return ["", "Choices:", *columns(choices), "", "Keys and their defaults:", *columns(keys | extra)]


def width() -> int:
    """Return the number of columns of a line: the terminal's width, but at most WIDEST."""
    return min(get_terminal_size().columns, WIDEST)


def columns(rows: dict[str, str]) -> list[str]:
    """Format names and their explanations as lines in two columns; a name that is too long has a line of its own.

    rows: name → explanation.
    """
    first = min(max(map(len, rows), default=0), 28)  # width of the first column
    indent, lines = " " * (first + 4), []
    for name, text in rows.items():
        wrapped = textwrap.wrap(text, max(width() - first - 4, 20), break_long_words=False, break_on_hyphens=False)
        head = [f"  {name:<{first}}  {wrapped[0]}"] if len(name) <= first else [f"  {name}", indent + wrapped[0]]
        lines += [*head, *(indent + line for line in wrapped[1:])]
    return lines


def answer(read: Arguments) -> None:
    """Print the part of the configuration that --cfg selects (job, hydra or all), or let Hydra answer --info.

    Of a sweep, only the first run's overrides are checked and shown. Raises ConfigError for an invalid override.
    """
    whole = first_composition(read).whole
    if read.cfg:
        keys = [str(key) for key in whole if read.cfg == "all" or (key == "hydra") == (read.cfg == "hydra")]
        print(OmegaConf.to_yaml(OmegaConf.masked_copy(whole, keys), resolve=read.resolve), end="")
    else:
        folder = [f"--config-dir={read.config_dir}"] if read.config_dir else []
        complete_by_hydra([f"--info={read.info}", f"--config-name={read.config_name}", *folder, *read.overrides])


def first_composition(read: Arguments) -> Composition:
    """Check the overrides, of a sweep only the values of its first run, and return that run's composition.

    Raises ConfigError for an invalid override.
    """
    with configurations(read.config_dir, read.config_name) as composer, naming_overrides(read.overrides):
        settings = split_jobs(parse_overrides(read.overrides), composer.folder)[0]
        composer.compose_job(settings)  # checks the values
        return composer.composed(tuple(setting.text for setting in settings))


def complete_by_hydra(arguments: list[str]) -> None:
    """Pass arguments to `hydra.main`, which prints the answer to --info or a completion.

    This replaces sys.argv, and lets Hydra raise its errors (HYDRA_FULL_ERROR).
    """

    def task(_: DictConfig) -> None:
        raise AssertionError("nothing is run")

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    sys.argv = ["bnexp", *arguments]
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
