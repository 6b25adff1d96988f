"""The commands of the command line. They raise errors, which main.py prints; `reproduce` also returns an exit status.

`bnexp train` and `bnexp compare` check all jobs before the first one starts. Modules that need torch are imported
inside the functions, so that questions about the configuration, completion and most errors need no torch.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bnexp.cli.arguments import parse_arguments, with_quoted_path
from bnexp.cli.compose import Composer, configurations
from bnexp.cli.errors import unknown_key
from bnexp.cli.help import answer
from bnexp.cli.overrides import parse_overrides, split_jobs
from bnexp.runs.config import PATHS, ConfigError, require
from bnexp.runs.console import print_line, show_table
from bnexp.runs.directory import RUN, SWEEP, to_json
from bnexp.runs.parse import pop_options
from bnexp.runs.record import comparison_of

RESULTS = "results"  # the folder of all runs and sweeps, unless hydra.run.dir or hydra.sweep.dir says otherwise

# ---- train and compare


def train(arguments: list[str]) -> None:
    """Run `bnexp train`: train one run, or a sweep with -m; with dry_run=true only print the plan."""
    options, arguments = pop_options(arguments, "dry_run")
    plan_and_train(arguments, is_true("dry_run", options), None)


def compare(arguments: list[str]) -> None:
    """Run `bnexp compare`: train a sweep, then compare its arms, paired by seed.

    With dry_run=true only print the plan.
    """
    options, arguments = pop_options(arguments, "by", "dry_run")
    plan_and_train(["--multirun", *arguments], is_true("dry_run", options), {"by": options["by"]})


def plan_and_train(arguments: list[str], dry: bool, compare: dict[str, str | None] | None) -> None:
    """Print what --cfg or --info asks for; without them, plan the runs and train them, or only print the plan if `dry`.

    compare: as in `train_and_compare`.
    """
    read = parse_arguments(arguments)
    if read.cfg or read.info:
        answer(read)
        return
    from bnexp.cli.plan import announce, plan, start, train_and_compare

    checked = plan(read, timed=dry or read.multirun)
    if compare is not None:
        from bnexp.compare.arms import check_by  # needs scipy

        check_by(compare["by"], [config.as_dict() for config in checked.configs])
    if dry:
        announce(checked)
    else:
        train_and_compare(partial(start, checked, compare, hint=True), checked.directory, compare)


def is_true(key: str, options: dict[str, str | None]) -> bool:
    """Return whether the option `key` is "true"; None, for one that isn't given, counts as "false".

    Raises ConfigError for any other value.
    """
    require(options[key] in (None, "true", "false"), key, options[key], "true or false")
    return options[key] == "true"


# ---- report, data, completion


def report(arguments: list[str]) -> None:
    """Run `bnexp report`: compare the runs in some directories, and write the report."""
    directories, by, out = parse_comparison("report", arguments)
    from bnexp.compare.report import report as make_report

    make_report(directories, by, out)


def export(arguments: list[str]) -> None:
    """Run `bnexp export`: write the runs in some directories in a format of other programs.

    Raises ConfigError without a format.
    """
    rest, to = list[str](), None
    given = iter(arguments)
    for argument in given:
        if argument == "--to" or argument.startswith("--to="):
            to = next(given, "") if argument == "--to" else argument.removeprefix("--to=")
        else:
            rest.append(argument)
    if to is None:
        raise ConfigError("export needs a format: --to csv, parquet or latex")
    directories, by, out = parse_comparison("export", rest)
    from bnexp.compare.export import export as write

    write(directories, to, by, out)


def parse_comparison(command: str, arguments: list[str]) -> tuple[list[Path], str | None, Path | None]:
    """Parse arguments that are directories, by=KEY or out=FOLDER; return them, None for an option without a value.

    command: the command's name, for messages. Raises ConfigError as `parse_directories` does, where an option is empty,
    and where several different directories are named without out=FOLDER.
    """
    options, arguments = pop_options(arguments, "by", "out")
    directories = parse_directories(command, arguments, "directories, by=…, out=…")
    for key, value in options.items():
        if value == "":
            raise ConfigError(f"{key}= is not allowed: it needs a value")
    out = options["out"]
    if out is None and len({directory.resolve() for directory in directories}) > 1:
        raise ConfigError(f"{command} of several directories needs out=FOLDER, where its files go")
    return directories, options["by"], None if out is None else Path(out).expanduser()


def parse_directories(command: str, arguments: list[str], allowed: str) -> list[Path]:
    """Return arguments that are directories as paths.

    command, allowed: the command's name, and the arguments that it takes, for messages. Raises ConfigError where none
    is named, or an argument is not an existing directory.
    """
    if not arguments:
        raise ConfigError(f"{command} needs a directory: bnexp {command} results/sweeps/…")
    for name in arguments:
        if not Path(name).is_dir():
            what = "is not allowed" if "=" in name or name.startswith("-") else "is not a directory"
            raise ConfigError(f"{name} {what}: {command} takes {allowed}")
    return list(map(Path, arguments))


def resume(arguments: list[str]) -> None:
    """Run `bnexp resume DIR…`: train the remaining runs in the directories of interrupted runs and sweeps.

    An argument KEY=FOLDER, for example dataset.root=DIR, gives the new path of a folder that was moved. A sweep that
    `bnexp compare` started is compared afterwards. Raises ConfigError without a directory, for arguments that are
    neither, and for a run that can't be resumed, and SweepError if runs failed.
    """
    folders = [argument for argument in arguments if Path(argument).is_dir()]
    options, others = pop_options([argument for argument in arguments if argument not in folders], *PATHS)
    moved = {key: os.path.abspath(os.path.expanduser(path)) for key, path in options.items() if path is not None}
    directories = parse_directories("resume", [*folders, *others], "directories")
    from bnexp.cli.plan import train_and_compare
    from bnexp.sweeps.resume import resume as finish

    for directory in directories:
        compare = comparison_of(directory)
        train_and_compare(partial(finish, directory, moved, hint=compare is None), directory, compare)


def status(arguments: list[str]) -> None:
    """Run `bnexp status [DIR …]`: print the progress of a run or a sweep, or which there are below a folder.

    With --watch it is shown until all have ended; --json prints every run. Raises ConfigError for an argument that is
    no directory, and where one holds no run.
    """
    flags = {"--watch", "--json"}
    named = [argument for argument in arguments if argument not in flags] or [RESULTS]
    directories = parse_directories("status", named, "directories, --watch, --json")
    from bnexp.sweeps.overview import find_entries, records, show_overview

    if "--json" in arguments:
        entries = [entry for directory in directories for entry in find_entries(directory)]
        print_line(to_json(records(entries)).rstrip())
        return
    for directory in directories:
        if any((directory / name).exists() for name in (RUN, SWEEP)):
            show_one(directory, "--watch" in arguments)
        else:
            show_overview(directory, "--watch" in arguments)


def show_one(directory: Path, watch: bool) -> None:
    """Print the progress of the run or sweep in a directory; watch: until the end."""
    from bnexp.sweeps.display import show_progress
    from bnexp.sweeps.overview import is_alive
    from bnexp.sweeps.resume import in_their_directories, runs_of
    from bnexp.sweeps.sweep_record import read_jobs

    directories_of = {digest: run.directory for digest, run in runs_of(directory).items()}
    jobs = in_their_directories(read_jobs(directory), directories_of)
    show_progress(jobs, watch, partial(is_alive, directory))


def clean(arguments: list[str]) -> None:
    """Run `bnexp clean DIR …`: show which runs, or checkpoints of runs, would be removed; with --yes, remove them.

    Raises ConfigError without a directory or without a choice of what to remove, and where a run is in use.
    """
    from bnexp.sweeps.clean import clean as remove
    from bnexp.sweeps.clean import parse_selection

    selection, yes, named = parse_selection(arguments)
    directories = parse_directories("clean", named, "directories, --failed, --checkpoints, --older-than AGE, --yes")
    for directory in directories:
        remove(directory, selection, yes)


def probe(arguments: list[str]) -> None:
    """Run `bnexp probe`: measure the loss around the checkpoints of runs."""
    directories, by, out = parse_comparison("probe", arguments)
    from bnexp.compare.landscape_report import report_probes

    report_probes(directories, by, out)


def reproduce(arguments: list[str]) -> int:
    """Run `bnexp reproduce`: train the sweeps of published claims and judge the claims, or list them with --list.

    Return the exit status: 1 where a sweep failed or cannot run, else 0; with --list always 0. Raises ConfigError for
    invalid arguments, and, without --list, where none of the claims can run.
    """
    from bnexp.cli.reproduce import check_and_reproduce

    return check_and_reproduce(arguments)


def data(arguments: list[str]) -> None:
    """Run `bnexp data`: show which data sets are ready (status, the default), or fetch one.

    Raises ConfigError for an unknown action and an argument that is not KEY=VALUE, and ConfigError or Hydra's error for
    an invalid override.
    """
    action, *overrides = arguments if arguments and "=" not in arguments[0] else ["status", *arguments]
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"data {action} {override} is not allowed: bnexp data {action} dataset=NAME")
    overrides = list(map(with_quoted_path, overrides))
    if action == "fetch":
        data_fetch(overrides)
    elif action == "status":
        data_status(overrides)
    else:
        raise ConfigError(f"data {action} is unknown: choose from status, fetch")


def data_fetch(overrides: list[str]) -> None:
    """Load a data set, which downloads, checks and decodes it where necessary, and print its numbers of images.

    overrides: dataset=NAME and values of its keys.
    """
    from bnexp.data.load import load_data, show_contents

    with configurations() as composer:
        config = composer.compose_run(overrides).dataset
    data = load_data(config)
    if data.contents:
        show_contents(data.contents)
    sizes = (f"{len(part):,} {name}" for name, part in vars(data).items() if name in ("train", "validation", "test"))
    print_line(f"{config.name}: ready, {', '.join(sizes)} images")


def data_status(overrides: list[str]) -> None:
    """Print a table with the status and location of the data set that dataset=NAME chooses, or of every data set."""
    from bnexp.data.load import find_loader

    chosen = any(override.startswith("dataset=") for override in overrides)
    with configurations() as composer:
        jobs = [overrides] if chosen else for_each_dataset(composer, overrides)
        configs = [composer.compose_run(job).dataset for job in jobs]
    rows = []
    for config in configs:
        loader = find_loader(config.name)
        rows.append([config.name, loader.problem(config) or "ready", loader.location(config)])
    show_table("data sets", ["dataset=", "status", "where"], rows, numbers=False)


def for_each_dataset(composer: Composer, overrides: list[str]) -> list[list[str]]:
    """Return a list of overrides for each data set: dataset=NAME, then `overrides` without keys dataset.… it lacks.

    Raises ConfigError for a key dataset.… that no data set has, and raises as `parse_overrides` does.
    """
    from bnexp.data.load import DATASETS

    keys = {name: composer.composed((f"dataset={name}",)).keys for name in DATASETS}
    jobs = {name: [f"dataset={name}"] for name in DATASETS}
    for override in parse_overrides(overrides):
        key = override.key_or_group
        fitting = [name for name in DATASETS if key in keys[name] or not key.startswith("dataset.")]
        if not fitting:
            raise ConfigError(unknown_key(key))
        for name in fitting:
            jobs[name].append(str(override.input_line))
    return list(jobs.values())


def bench(arguments: list[str]) -> None:
    """Run `bnexp bench`: measure training steps per second without a norm and with each norm.

    The norms are those that the overrides choose, by default all. Tables are printed, and written with a figure and
    bench.json to the directory of the argument out=DIR.
    """
    from bnexp.cli.plan import check_output
    from bnexp.compare.throughput import measure_benchmarks
    from bnexp.compare.throughput_plan import make_benchmarks, take_options, with_norms
    from bnexp.compare.throughput_report import show, write

    options, overrides = take_options(arguments)
    check_output(options.out, "out")
    with configurations() as composer:
        settings = split_jobs(parse_overrides(list(map(with_quoted_path, overrides))), None)
        jobs = with_norms([[setting.text for setting in row] for row in settings])
        runs = [composer.compose_run(job) for job in jobs]
    panels = make_benchmarks(jobs, runs, options)
    rows = measure_benchmarks(panels, options)
    write(panels, rows, options)
    show(panels, rows, options)


def check(arguments: list[str]) -> int:
    """Run `bnexp check GROUP/NAME`: check a plugin's norm, activation, …; return the exit status, 1 where one failed.

    It is checked in a small network on the digits, which further arguments change.
    """
    from bnexp.runs.plugins import POINTS, plugins_of
    from bnexp.training.check import check as check_config
    from bnexp.training.entry_check import check_entry

    name, overrides = (arguments or [""])[0], arguments[1:]
    group, _, choice = name.partition("/")
    require(group in POINTS and bool(choice), "check", name, f"GROUP/NAME, where GROUP is {', '.join(POINTS)}")
    with configurations() as composer:
        config = composer.compose_run([*small_network(group, choice), *map(with_quoted_path, overrides)])
    check_config(config)
    print_line(f"{group}={choice} of {plugins_of(config).get(group, 'bnexp')}")
    outcomes = check_entry(config, group)
    for outcome in outcomes:
        print_line(f"  {outcome.check}: {outcome.status}{f': {outcome.reason}' if outcome.reason else ''}")
    return int(any(outcome.status == "failed" for outcome in outcomes))


def small_network(group: str, choice: str) -> list[str]:
    """Return the overrides of a small run with a choice of a group."""
    from bnexp.models.norm_registry import find_norm
    from bnexp.runs.config import NormConfig

    images = group == "norm" and find_norm(NormConfig(choice)).images_only
    arch = [] if group == "arch" else ["arch=convnet", "arch.channels=[4,4]"] if images else ["arch.hidden=[8,8]"]
    dataset = [] if group == "dataset" else ["dataset=digits"]
    small = ["steps=6", "batch_size=20", "threads=1", "device=cpu", "compile=false"]
    return [f"{group}={choice}", *dataset, *arch, *small]


COMMANDS: dict[str, Callable[[list[str]], int | None]] = {
    "train": train,
    "compare": compare,
    "resume": resume,
    "status": status,
    "clean": clean,
    "report": report,
    "export": export,
    "probe": probe,
    "bench": bench,
    "data": data,
    "reproduce": reproduce,
    "check": check,
}
