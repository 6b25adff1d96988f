"""The commands. What `bnexp train` and `bnexp compare` are to run is checked by `plan`, whole, before it starts.

Imports are lazy, so that --help and completion need no torch.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from bnexp.claims.claim import Claim, Sweep
    from bnexp.config import RunConfig
    from bnexp.plan import Plan
    from bnexp.runs import Launch
    from bnexp.sweep import SweepPlan
    from bnexp.words import Words

HELP = """\
bnexp: what does normalization do to training?

  bnexp train [OVERRIDE …]            one run: bnexp train norm=batch act=sigmoid
  bnexp train -m [OVERRIDE …]         a sweep: bnexp train -m norm=none,batch 'seed=range(5)'
  bnexp compare [OVERRIDE …] [by=KEY] a sweep, then the paired comparison: table and figure
                                      (dry_run=true: of both, how it would be done and about how long it takes)
  bnexp resume DIR … [dataset.root=DIR]   what was cut off there goes on, and ends as it would have
  bnexp report DIR … [by=KEY] [out=FOLDER]   the comparison of runs that are there
  bnexp probe DIR … [by=KEY] [out=FOLDER]    the loss around their checkpoints: smoothness, internal covariate shift
  bnexp reproduce [CLAIM …] [--list] [--seeds N]   published claims, judged
  bnexp bench [WORD …]                steps/s of every norm against none: eager, compiled, stacked
  bnexp data [status|fetch] [dataset=NAME] [dataset.root=DIR]

bnexp train --help lists every choice and key; bnexp train OVERRIDE … --cfg job prints a configuration.
eval "$(bnexp -sc install=bash)" installs completion (or zsh, fish).
"""


def main() -> None:
    from bnexp.streams import protect_streams

    protect_streams()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Exit status: 0 done, 1 a run failed, 2 invalid arguments, 129, 130 or 143 a signal."""
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            take_part(arguments)
        return dispatch(arguments)
    except KeyboardInterrupt as error:
        return 128 + getattr(error, "signum", 2)
    except Exception as error:
        from bnexp.console import complain
        from bnexp.messages import explain

        status, line = explain(error)
        complain(line)
        return status


def take_part(arguments: list[str]) -> None:
    """Under torchrun the processes meet, and one of them speaks."""
    from bnexp import parallel
    from bnexp.config import ConfigError
    from bnexp.console import console, errors

    console.quiet = errors.quiet = os.environ["RANK"] != "0"
    if arguments[:1] != ["train"]:
        name = " ".join(arguments[:1])
        raise ConfigError(f"bnexp {name} is not for torchrun, whose processes share one run: bnexp train")
    if not {"-m", "--multirun"}.isdisjoint(arguments):
        raise ConfigError("a sweep is not allowed under torchrun: its processes share the batches of one run")
    parallel.join()


def dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"bnexp {version('bnexp')}")
        return 0
    if not __debug__:
        from bnexp.config import ConfigError

        raise ConfigError("python -O and PYTHONOPTIMIZE are not allowed: they leave out what Hydra does in assertions")
    if arguments[0] in ("-sc", "--shell-completion"):
        return complete(arguments)
    if arguments[1:] in (["--help"], ["-h"]) and arguments[0] not in ("train", "compare", "reproduce"):
        return dispatch([])
    if arguments[0] not in COMMANDS:
        from bnexp.messages import unknown_command

        raise unknown_command(arguments[0], list(COMMANDS))
    return COMMANDS[arguments[0]](arguments[1:])


# ---- train and compare


def train(arguments: list[str]) -> int:
    from bnexp.plan import plan
    from bnexp.words import read_words

    dry, arguments = take_dry_run(arguments)
    words = read_words(arguments)
    if words.asks:
        return ask(words)
    checked = plan(words, timed=dry or words.multirun)
    if dry:
        return announce(checked)
    from bnexp import parallel

    if parallel.processes() > 1:
        return train_in_parallel(checked)
    return start(checked)


def start(checked: Plan, compare: dict[str, str | None] | None = None) -> int:
    """Take the directory, and run there what was planned and isn't finished. `compare`: how it is then compared."""
    from bnexp import parallel
    from bnexp.console import command, say
    from bnexp.data import show_contents
    from bnexp.files import shortest
    from bnexp.lock import Lock
    from bnexp.plan import check_output, place_key
    from bnexp.resume import clear_leftovers, write_jobs

    if not checked.sweep.stacks:
        if compare is not None:
            with Lock(checked.directory):
                write_jobs(checked.directory, checked.jobs, checked.options, compare)
        say(f"{checked.directory} is finished: nothing is left to do")
        return 0
    for contents in checked.contents:
        show_contents(contents)
    with Lock(checked.directory):
        if checked.goes_on:
            clear_leftovers(checked.directory)
        else:
            check_output(
                checked.directory, place_key(checked.words.multirun)
            )  # again, now that nobody else can write there
        if checked.jobs:
            write_jobs(checked.directory, checked.jobs, checked.options, compare)
        try:
            run_planned(checked)
            return 0
        except KeyboardInterrupt:
            place = shortest(checked.directory)
            typed = f"its command with {shlex.quote(f'hydra.sweep.dir={place}')}"
            again = typed if checked.sweep.submit else command("resume", place)
            if parallel.processes() == 1:  # torchrun's cannot
                say(f"it goes on by: {again}")
            raise


def train_in_parallel(checked: Plan) -> int:
    """Under torchrun: rank 0 is the run, the others take their shares of its batches."""
    from bnexp import parallel
    from bnexp.train import follow

    parallel.meet()
    if parallel.rank() == 0:
        return start(checked)
    follow(checked.runs[0])
    return 0


def compare(arguments: list[str]) -> int:
    from bnexp.plan import plan
    from bnexp.words import read_words

    by, arguments = take("by", arguments)
    dry, arguments = take_dry_run(arguments)
    words = read_words(["--multirun", *arguments])
    if words.asks:
        return ask(words)
    checked = plan(words)
    from bnexp.comparison import check_by
    from bnexp.files import shortest

    check_by(by, [config.as_dict() for config in checked.runs])
    if dry:
        return announce(checked)
    return train_and_compare(lambda: start(checked, {"by": by}), shortest(checked.directory), by)


def train_and_compare(train: Callable[[], object], directory: Path, by: str | None) -> int:
    """The comparison of what finished comes also where some runs failed. Raises SweepError for these."""
    from bnexp.config import ConfigError
    from bnexp.report import report
    from bnexp.running import SweepError

    failed: SweepError | None = None
    try:
        train()
    except SweepError as error:
        failed = error
    try:
        report([directory], by)
    except ConfigError:  # there is none
        if failed is None:
            raise
    if failed is not None:
        raise failed
    return 0


def announce(checked: Plan) -> int:
    from bnexp.console import say
    from bnexp.data import show_contents

    for contents in checked.contents:
        show_contents(contents)
    say(str(checked.sweep))
    return 0


def run_planned(checked: Plan) -> None:
    """A run of its own as it was composed; of a sweep, Hydra's launcher makes them, or another one calls the task."""
    from hydra.core.hydra_config import HydraConfig

    from bnexp.composition import configurations
    from bnexp.config import literal, parse
    from bnexp.jobs import launch_of, open_job
    from bnexp.runs import Compilation

    compilations = {job.number: job.compilation for stack in checked.sweep.stacks for job in stack}
    if not checked.words.multirun:
        checked.composition.hydra.merge_with({"mode": "RUN", "run": {"dir": literal(str(checked.directory))}})
        launch = replace(open_job(checked.composition, checked.directory), compilation=compilations[0])
        train_one(checked.runs[0], launch, checked.composition.hydra.job.override_dirname)
        return

    def task(config: DictConfig) -> str:
        job, launch = HydraConfig.get(), launch_of(HydraConfig.get())
        launch = replace(launch, compilation=compilations.get(launch.job, Compilation()))  # of a finished one: none
        return train_one(parse(config), launch, job.job.override_dirname)

    task.sweep = checked.sweep  # type: ignore[attr-defined]  # for the launcher, which is handed nothing but the task
    with configurations(checked.words.config_dir) as hydra:
        hydra.multirun(checked.words.config_name, task, checked.overrides)


def ask(words: Words) -> int:
    from bnexp.plan import check_question

    return ask_hydra(check_question(words))


def ask_hydra(arguments: list[str]) -> int:
    """What Hydra answers itself: --help, --cfg, completion."""
    import hydra

    from bnexp.composition import conf_dir

    def task(_: DictConfig) -> None:
        raise AssertionError("nothing is run")

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, to be said in a line
    sys.argv = ["bnexp", *arguments]
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    return 0


def train_one(config: RunConfig, launch: Launch, name: str) -> str:
    """One run into the directory that was made for it, whose log is open. Returns its status."""
    import logging

    from bnexp.compiled import CompileError
    from bnexp.config import ConfigError
    from bnexp.console import describe, say
    from bnexp.progress import TrainingDisplay, shown
    from bnexp.train import run_alone

    title = name or "defaults"
    try:
        with shown(TrainingDisplay(title)) as display:
            summary = run_alone(config, launch, display)
    except (ConfigError, OSError, CompileError):
        raise
    except Exception:
        logging.getLogger("bnexp").exception("%s failed", title)
        raise
    logging.getLogger("bnexp").info(describe(summary))
    say(f"{title}: {describe(summary)} → {launch.directory}")
    return str(summary["status"])


def take(key: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """The value of a word of ours, KEY=VALUE, and the words that are left."""
    chosen = [word.removeprefix(f"{key}=") for word in arguments if word.startswith(f"{key}=")]
    return (chosen[-1] if chosen else None), [word for word in arguments if not word.startswith(f"{key}=")]


def take_dry_run(arguments: list[str]) -> tuple[bool, list[str]]:
    from bnexp.config import require

    value, left = take("dry_run", arguments)
    require(value in (None, "true", "false"), "dry_run", value, "true or false")
    return value == "true", left


# ---- report, data, completion


def report(arguments: list[str]) -> int:
    directories, given = take_directories("report", arguments, ("by", "out"))
    from bnexp.report import report as make_report

    make_report(directories, given["by"], folder(given["out"]))
    return 0


def folder(word: str | None) -> Path | None:
    return None if word is None else Path(word).expanduser()


def take_directories(
    command: str, arguments: list[str], keys: tuple[str, ...] = ()
) -> tuple[list[Path], dict[str, str | None]]:
    """Directories that are there, and the values of what the command knows, KEY=VALUE. Raises ConfigError."""
    from bnexp.config import ConfigError

    given: dict[str, str | None] = {}
    for key in keys:
        given[key], arguments = take(key, arguments)
    allowed = ", ".join(["directories", *(f"{key}=…" for key in keys)])
    if not arguments:
        raise ConfigError(f"{command} needs a directory: bnexp {command} results/sweeps/…")
    for name in arguments:
        if not Path(name).is_dir():
            what = "is not allowed" if "=" in name or name.startswith("-") else "is not a directory"
            raise ConfigError(f"{name} {what}: {command} takes {allowed}")
    empty = next((key for key, value in given.items() if value == ""), None)
    if empty is not None:
        raise ConfigError(f"{empty}= is not allowed: it needs a value")
    several = len({Path(name).resolve() for name in arguments}) > 1
    if several and "out" in keys and given["out"] is None:
        raise ConfigError(f"{command} of several directories needs out=FOLDER, where its files go")
    return [Path(name) for name in arguments], given


def resume(arguments: list[str]) -> int:
    """Finish what was cut off, where its data were or where KEY=FOLDER says that they are by now; of `bnexp compare`,
    with its comparison.
    """
    from bnexp.config import PATHS

    keys = tuple(f"{key}=" for key in PATHS)
    moves = [word for word in arguments if word.startswith(keys) and not Path(word).is_dir()]
    moved = {key: os.path.abspath(os.path.expanduser(path)) for key, _, path in (word.partition("=") for word in moves)}
    directories, _ = take_directories("resume", [word for word in arguments if word not in moves])
    from bnexp.console import say
    from bnexp.lock import Lock
    from bnexp.planned import comparison_of
    from bnexp.resume import resume as finish

    def train(directory: Path) -> None:
        with Lock(directory):
            say(finish(directory, moved))

    for directory in directories:
        compare = comparison_of(directory)
        if compare is None:
            train(directory)
        else:
            train_and_compare(partial(train, directory), directory, compare["by"])
    return 0


def probe(arguments: list[str]) -> int:
    directories, given = take_directories("probe", arguments, ("by", "out"))
    from bnexp.probe_report import report_probes

    report_probes(directories, given["by"], folder(given["out"]))
    return 0


def reproduce(arguments: list[str]) -> int:
    """Run what the claims still need, a sweep after the other, and judge them. Claims whose sweep cannot run here, as
    one on photographs that aren't there, are said and left as they were.
    """
    from bnexp.config import ConfigError
    from bnexp.console import complain, say
    from bnexp.plan import check_place
    from bnexp.reproduce import check_readme, judge, load_runs, show, sweeps_of, take_options, without, write
    from bnexp.running import SweepError

    options = take_options(arguments)
    check_place(options.out, "--out")
    check_readme(options.out)
    sweeps = sweeps_of(options.claims)
    if options.listed:
        list_claims(options.claims, sweeps, options.seeds)
        return 0
    planned: dict[str, list[RunConfig]] = {}
    failed, impossible = dict[str, str](), dict[str, str]()
    for number, sweep in enumerate(sweeps, 1):
        say(f"sweep {number} of {len(sweeps)}: {sweep.name}")
        try:
            planned[sweep.name] = run_claim(sweep, options.seeds)
        except SweepError as error:
            complain(str(error))
            failed[sweep.name] = str(error)
        except ConfigError as error:
            complain(f"{sweep.name} cannot run: {error}")
            impossible[sweep.name] = str(error)
    options = without(options, impossible)
    runs = load_runs(options.claims, planned)
    records = judge(options, runs, failed, planned)
    show(write(records, options, runs), options)
    return 1 if failed or impossible else 0


def list_claims(claims: list[Claim], sweeps: list[Sweep], seeds: int) -> None:
    """What their sweeps still need; one that starts from runs which aren't there yet cannot be planned."""
    from bnexp.config import ConfigError
    from bnexp.console import console, count, duration, say
    from bnexp.reproduce import show_list

    plans: dict[str, SweepPlan] = {}
    times = {sweep.name: f"after {sweep.after.name}" for sweep in sweeps if sweep.after}
    with console.status("looking at what is left to run", spinner="line"):
        for sweep in sweeps:
            start = plans.get(sweep.after.name) if sweep.after else None
            if sweep.after is None or (start and not start.stacks):
                try:
                    plans[sweep.name] = plan_claim(sweep, seeds).sweep
                except ConfigError:  # its data isn't there
                    times[sweep.name] = "cannot run here"
    times |= {name: duration(plan.seconds) if plan.stacks else "done" for name, plan in plans.items()}
    show_list(claims, times)
    later = len(sweeps) - len(plans)
    besides = f", besides {count(later, 'sweep')} that cannot be planned yet" if later else ""
    say(f"all that is left: about {duration(sum(plan.seconds for plan in plans.values()))}{besides}")


def plan_claim(sweep: Sweep, seeds: int) -> Plan:
    """What is left of a claim's sweep."""
    from bnexp.plan import plan
    from bnexp.reproduce import folder_of, words_of
    from bnexp.words import read_words

    words = read_words(["--multirun", *words_of(sweep, seeds), f"hydra.sweep.dir={folder_of(sweep)}"])
    return plan(words, resume=True)


def run_claim(sweep: Sweep, seeds: int) -> list[RunConfig]:
    """Train what is left of a claim's sweep; the runs that make it up."""
    from bnexp.lock import Lock
    from bnexp.resume import give_way

    checked = plan_claim(sweep, seeds)
    if checked.sweep.stacks:
        with Lock(checked.directory):
            give_way(checked.directory, checked.runs, checked.names)
            start(checked)
    return checked.runs


def data(arguments: list[str]) -> int:
    from bnexp.config import ConfigError
    from bnexp.words import with_path

    action, *overrides = arguments if arguments and "=" not in arguments[0] else ["status", *arguments]
    stray = next((word for word in overrides if "=" not in word), None)
    if stray is not None:
        raise ConfigError(f"data {action} {stray} is not allowed: bnexp data {action} dataset=NAME")
    overrides = list(map(with_path, overrides))
    if action == "fetch":
        return data_fetch(overrides)
    if action == "status":
        return data_status(overrides)
    raise ConfigError(f"data {action} is unknown: choose from status, fetch")


def data_fetch(overrides: list[str]) -> int:
    """Download, check and decode a data set, whatever of it is needed."""
    from bnexp.composition import compose_run, configurations
    from bnexp.console import say
    from bnexp.data import load_data, show_contents

    with configurations():
        config = compose_run(overrides).dataset
    data = load_data(config)
    if data.contents:
        show_contents(data.contents)
    sizes = (f"{len(part):,} {name}" for name, part in vars(data).items() if name in ("train", "validation", "test"))
    say(f"{config.name}: ready, {', '.join(sizes)} images")
    return 0


def data_status(overrides: list[str]) -> int:
    from bnexp.composition import compose_run, configurations
    from bnexp.console import show_table
    from bnexp.data import DATASETS, find_loader

    chosen = any(word.startswith("dataset=") for word in overrides)
    with configurations():
        jobs = [overrides] if chosen else with_each(list(DATASETS), overrides)
        configs = [compose_run(job).dataset for job in jobs]
    rows = []
    for config in configs:
        loader = find_loader(config.name)
        rows.append([config.name, loader.problem(config) or "ready", loader.location(config)])
    show_table("data sets", ["dataset=", "status", "where"], rows, numbers=False)
    return 0


def with_each(names: list[str], overrides: list[str]) -> list[list[str]]:
    """The overrides with every data set, without those whose key it doesn't have. Raises ConfigError for one that none
    has.
    """
    from bnexp.composition import compose
    from bnexp.config import ConfigError, unknown_key

    keys = {name: {f"dataset.{key}" for key in compose("config", [f"dataset={name}"]).dataset} for name in names}
    for key in (word.partition("=")[0].lstrip("+") for word in overrides):
        if key.startswith("dataset.") and key not in set().union(*keys.values()):
            raise ConfigError(unknown_key(key))

    def fits(word: str, name: str) -> bool:
        key = word.partition("=")[0].lstrip("+")
        return key in keys[name] or not key.startswith("dataset.")

    return [[f"dataset={name}", *(word for word in overrides if fits(word, name))] for name in names]


def bench(arguments: list[str]) -> int:
    from bnexp.bench import make_panels, measure_panels, take_options, with_norms
    from bnexp.bench_report import show, write
    from bnexp.composition import compose_run, configurations, parse_overrides
    from bnexp.plan import check_output, split_jobs
    from bnexp.words import with_path

    options, overrides = take_options(arguments)
    check_output(options.out, "out")
    with configurations():
        jobs = with_norms(split_jobs(parse_overrides(list(map(with_path, overrides)))))
        runs = [compose_run(job) for job in jobs]
    panels = make_panels(jobs, runs, options)
    rows = measure_panels(panels, options)
    write(panels, rows, options)
    show(panels, rows, options)
    return 0


def complete(arguments: list[str]) -> int:
    """Completion: of commands here; behind a command by Hydra, which knows none, so it is taken out of the line."""
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if any(word.startswith("query=") for word in arguments):
        if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
            print(*(name for name in COMMANDS if name.startswith("".join(words[1:2]))), sep="\n")
            return 0
        shorter = line.replace(f"{words[1]} ", "", 1)
        point = int(os.environ.get("COMP_POINT", len(line)))
        os.environ.update(COMP_LINE=shorter, COMP_POINT=str(point - len(line) + len(shorter)))
    return ask_hydra(arguments)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "compare": compare,
    "resume": resume,
    "report": report,
    "probe": probe,
    "bench": bench,
    "reproduce": reproduce,
    "data": data,
}

if __name__ == "__main__":
    main()
