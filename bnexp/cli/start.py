"""Start the plans of `bnexp train`, `bnexp compare` and `bnexp reproduce`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bnexp.cli.plan import Plan
    from bnexp.sweeps.stacks import SweepPlan


def start(checked: Plan, compare: dict[str, str | None] | None = None) -> int:
    """Lock the plan's directory, write sweep.json for a sweep, and train the remaining runs; return the exit status.

    compare: {"by": KEY or None} where the sweep is compared afterwards, which sweep.json records. Raises ConfigError
    where another process uses the directory, and SweepError where runs failed.
    """
    from bnexp.cli.plan import check_output, place_key
    from bnexp.data.load import show_contents
    from bnexp.runs import distributed
    from bnexp.runs.console import command, print_line
    from bnexp.runs.lock import Lock
    from bnexp.sweeps.resume import clear_partial_files, runs_of, write_jobs
    from bnexp.sweeps.run import run_sweep

    directory, multirun = checked.directory, checked.arguments.multirun
    if checked.sweep.stacks:
        for contents in checked.contents:
            show_contents(contents)
    with Lock(directory):
        if checked.resumed and checked.sweep.stacks:
            clear_partial_files(directory, runs_of(directory))
        elif not checked.resumed:  # again, now that the directory is locked
            check_output(directory, place_key(multirun))
        if multirun and (checked.sweep.stacks or compare is not None):
            write_jobs(directory, checked.jobs, checked.executor, compare)
        if not checked.sweep.stacks:
            print_line(f"{directory} is finished: no run remains")
            return 0
        try:
            run_sweep(plan_to_run(checked))
            return 0
        except KeyboardInterrupt:
            if distributed.processes() == 1:  # a run of torchrun cannot be resumed
                print_line(f"resume it by: {command('resume', directory)}")
            raise


def plan_to_run(checked: Plan) -> SweepPlan:
    """Return the plan to train; a single run trains in this process instead of a worker process."""
    single = not checked.arguments.multirun and checked.executor.name == "processes"
    return replace(checked.sweep, inline=True) if single else checked.sweep


def train_in_parallel(checked: Plan) -> int:
    """Train one run under torchrun; return the exit status.

    Rank 0 trains and writes the run's directory, and the other ranks train their shards of its batches.
    """
    from bnexp.runs import distributed
    from bnexp.training.loop import train_share

    distributed.barrier()
    if distributed.rank() == 0:
        return start(checked)
    train_share(checked.jobs[0].config)
    return 0


def train_and_compare(train: Callable[[], object], directory: Path, by: str | None) -> int:
    """Call `train`, which trains a sweep, then compare the finished runs in its directory; return the exit status.

    by: the key whose values are the arms; None for the default. The comparison is made also where runs failed; the
    SweepError is raised afterwards. Raises ConfigError where no runs can be compared.
    """
    from bnexp.compare.report import report
    from bnexp.runs.config import ConfigError
    from bnexp.sweeps.run import SweepError

    failed: SweepError | None = None
    try:
        train()
    except SweepError as error:
        failed = error
    try:
        report([directory], by)
    except ConfigError:  # nothing to compare
        if failed is None:
            raise
    if failed is not None:
        raise failed
    return 0


def announce(checked: Plan) -> int:
    """Print the plan and about how long it takes, for dry_run=true; return the exit status."""
    from bnexp.data.load import show_contents
    from bnexp.runs.console import print_line

    for contents in checked.contents:
        show_contents(contents)
    print_line(str(plan_to_run(checked)))
    return 0
