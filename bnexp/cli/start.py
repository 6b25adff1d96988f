"""Start the plans of `bnexp train`, `bnexp compare` and `bnexp reproduce`."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bnexp.cli.plan import Plan, check_output, place_key
from bnexp.data.load import show_contents
from bnexp.runs import distributed
from bnexp.runs.config import ConfigError
from bnexp.runs.console import command, print_line
from bnexp.runs.lock import Lock
from bnexp.sweeps.resume import clear_partial_files, runs_of, write_jobs
from bnexp.sweeps.run import SweepError, run_sweep
from bnexp.training.loop import train_share


def start(checked: Plan, compare: dict[str, str | None] | None = None) -> None:
    """Lock the plan's directory, write sweep.json for a sweep, and train the remaining runs.

    compare: {"by": KEY or None} where the sweep is compared afterwards, which sweep.json records. Raises ConfigError
    where another process uses the directory, and SweepError where runs failed.
    """
    directory, multirun = checked.directory, checked.multirun
    if checked.sweep.stacks:
        for contents in checked.contents:
            show_contents(contents)
    with Lock(directory):
        if checked.resumed and checked.sweep.stacks:
            clear_partial_files(directory, runs_of(directory))
        elif not checked.resumed:  # again, now that the directory is locked
            check_output(directory, place_key(multirun))
        if multirun and (checked.sweep.stacks or compare is not None):
            write_jobs(directory, checked.jobs, checked.sweep.config, compare)
        if not checked.sweep.stacks:
            print_line(f"{directory} is finished: no run remains")
            return
        try:
            run_sweep(checked.sweep)
        except KeyboardInterrupt:
            if distributed.processes() == 1:  # a run of torchrun cannot be resumed
                print_line(f"resume it by: {command('resume', directory)}")
            raise


def train_in_parallel(checked: Plan) -> None:
    """Train one run under torchrun.

    Rank 0 trains and writes the run's directory, and the other ranks train their shards of its batches.
    """
    distributed.barrier()
    if distributed.rank() == 0:
        start(checked)
    else:
        train_share(checked.jobs[0].config)


def train_and_compare(train: Callable[[], object], directory: Path, by: str | None) -> None:
    """Call `train`, which trains a sweep, then compare the finished runs in its directory.

    by: the key whose values are the arms; None for the default. The comparison is made also where runs failed; the
    SweepError is raised afterwards. Raises ConfigError where no runs can be compared.
    """
    from bnexp.compare.report import report  # needs matplotlib

    try:
        train()
    except SweepError:
        with suppress(ConfigError):  # nothing to compare
            report([directory], by)
        raise
    report([directory], by)


def announce(checked: Plan) -> None:
    """Print the plan and about how long it takes, for dry_run=true."""
    for contents in checked.contents:
        show_contents(contents)
    print_line(str(checked.sweep))
