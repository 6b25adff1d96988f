"""Show the progress of a sweep: a live table on a terminal, plain lines elsewhere.

A thread reads the progress from the runs' directories, so it works the same for every executor.
"""

import threading
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.live import Live
from rich.table import Table

from bnexp.runs.console import console, count, describe, duration, harmless, literal, log_line, print_line, rate
from bnexp.runs.directory import close_interrupted
from bnexp.runs.record import last_evaluation, opened_at, read_summary
from bnexp.sweeps.job import Job, StackOfJobs

POLL_EVERY = 0.5  # seconds between readings of the directories
LINES_EVERY = 10.0  # seconds between plain lines
ASK_EVERY = 5.0  # seconds between questions whether a sweep is alive
DONE = ("finished", "diverged", "failed")


@dataclass
class RunState:
    """The state of a run, read from its directory.

    live: whether it is being trained already, or may be, as this sweep begins. began: when its first evaluation of this
    sweep was read; ended: when its summary was read; both in seconds of a monotonic clock.
    """

    job: Job
    live: bool = False
    status: str = "waiting"  # waiting | running | finished | diverged | failed | interrupted
    step: int = 0  # of the latest evaluation
    first: int | None = None  # step of the first evaluation that was read in this sweep
    accuracy: float | None = None
    began: float | None = None
    ended: float | None = None
    opened: int | None = field(init=False)  # `opened_at` at the run's end or before this sweep: a change is its start

    def __post_init__(self) -> None:
        self.opened = None if self.live else opened_at(self.job.directory)

    @property
    def remaining(self) -> int:
        """The number of steps from the latest evaluation to the end; 0 where the run has ended."""
        return 0 if self.ended else self.job.config.steps - self.step

    def refresh(self) -> str | None:
        """Update the state from the directory; return a line with the result if the run has just ended, else None."""
        directory, now = self.job.directory, time.monotonic()
        opened = opened_at(directory)
        if self.status in DONE or opened == self.opened:
            return None
        self.status, self.ended = "running", None
        if (latest := last_evaluation(directory)) is not None:
            if self.first is None:
                self.first, self.began = latest[0], now
            self.step, self.accuracy = latest
        summary = read_summary(directory)
        if summary is None:
            return None
        self.status, self.ended, self.opened = str(summary["status"]), now, opened  # an interrupted run may be reopened
        return f"{self.job.title}: {describe(summary)} → {directory}"


class Display:
    """The display of a sweep's progress, with a row for each arm; a single run is shown by its step and accuracy.

    live: the digests of runs that may be being trained already.
    """

    def __init__(self, jobs: list[Job], live: Set[str] = frozenset()) -> None:
        self.runs = {job.number: RunState(job, job.digest in live) for job in jobs}
        self.line_at = time.monotonic() + LINES_EVERY
        self.live = Live(console=console, auto_refresh=False, transient=True)
        self.lock, self.over = threading.Lock(), threading.Event()

    def watch(self) -> None:
        """Refresh the display until `over` is set. This is the main function of the display's thread.

        Reading the directories of many runs takes a tenth of its time at most.
        """
        took = 0.0
        while not self.over.wait(max(POLL_EVERY, 9 * took)):
            began = time.monotonic()
            with harmless():
                self.refresh()
            took = time.monotonic() - began

    def refresh(self) -> None:
        """Update the state of every run, print a line for each run that has just ended, and draw the progress.

        On a terminal the table is redrawn; elsewhere the progress is printed every LINES_EVERY seconds.
        """
        with self.lock:
            lines = [run.refresh() for run in self.runs.values()]
        for line in filter(None, lines):
            log_line(line)
        if console.is_terminal:
            self.live.update(self.table(), refresh=True)
        elif time.monotonic() > self.line_at:
            log_line(self.line())
            self.line_at = time.monotonic() + LINES_EVERY

    def restart(self, stack: StackOfJobs) -> None:
        """Reset those runs of a stack whose process was lost that have not ended: they are shown as waiting."""
        with harmless():  # some may have ended since the last reading
            self.refresh()
        with self.lock:
            self.runs |= {job.number: RunState(job) for job in stack if self.runs[job.number].ended is None}

    def close_interrupted(self) -> None:
        """Write a summary with the status "interrupted" for each run that was created, now or earlier, and has none."""
        with harmless():
            self.refresh()
        for run in self.runs.values():
            if run.ended is None and opened_at(run.job.directory) is not None:
                run.status = "interrupted"
                with suppress(OSError):
                    close_interrupted(run.job.directory, (last_evaluation(run.job.directory) or (0, 0.0))[0])

    def outcome(self, alive: bool = False) -> str:
        """Return how the sweep ended, with the number of its runs by status: failed: 1 of 20 runs, 19 finished.

        It is running, interrupted or failed if one of its runs is. If some have not started, it is interrupted, or, if
        it is `alive`, waiting.
        """
        statuses = [run.status for run in self.runs.values()]
        order = ("running", "interrupted", "failed")
        worst = next((status for status in order if status in statuses), "finished")
        if worst == "finished" and "waiting" in statuses:
            worst = "waiting" if alive else "interrupted"
        names = [name for name in (worst, *DONE, "interrupted", "running", "waiting") if name in statuses]
        first, *others = dict.fromkeys(names)
        total = count(len(statuses), "run") + (f" {first}" if first != worst else "")
        return ", ".join(
            [f"{worst}: {statuses.count(first)} of {total}", *(f"{statuses.count(name)} {name}" for name in others)]
        )

    def done(self) -> bool:
        """Return whether all runs are done, so that none is resumed."""
        return all(run.status in DONE for run in self.runs.values())

    def tally(self) -> str:
        """Return how many of all runs are done (finished, diverged or failed), as text: 3 of 20 runs done."""
        return f"{sum(run.status in DONE for run in self.runs.values())} of {len(self.runs)} runs done"

    def line(self) -> str:
        """Return the progress in a line: 3 of 20 runs done, 5 running, 5,100 steps/s, 40 s left.

        Done are finished, diverged and failed runs; what isn't known yet is left out. For a single run, the line begins
        with its step and accuracy instead.
        """
        runs = list(self.runs.values())
        if len(runs) == 1:
            [run] = runs
            latest = "" if run.accuracy is None else f", accuracy {run.accuracy:.1%}"
            latest += ", testing" if run.accuracy is not None and run.remaining == 0 and run.ended is None else ""
            parts = [f"{run.job.title}: step {run.step:,} of {run.job.config.steps:,}{latest}"]
        else:
            parts = [self.tally(), f"{sum(run.status == 'running' for run in runs)} running"]
        speed, left = pace(runs)
        parts += [f"{speed} steps/s"] if speed else []
        parts += [f"{left} left"] if left else []
        return ", ".join(parts)

    def table(self) -> Table:
        """Return a table with a row for each arm and the progress of all runs as its caption."""
        table = Table(box=SIMPLE_HEAD, header_style="bold", caption_justify="left", caption=self.line())
        table.add_column("arm", overflow="fold")
        for name in ("done", "running", "diverged", "accuracy", "steps/s", "left"):
            table.add_column(name, justify="right")
        arms: dict[str, list[RunState]] = {}
        for run in self.runs.values():
            arms.setdefault(run.job.arm, []).append(run)
        for name, runs in arms.items():
            table.add_row(literal(name), *cells(runs))
        return table


def show_progress(jobs: list[Job], watch: bool, alive: Callable[[], bool]) -> None:
    """Print the progress of a sweep that another process trains, as its directories have it.

    watch: show it until the sweep has ended, as the display of the sweep itself does, or a signal comes. alive: tells
    whether a process trains the sweep, or jobs of a cluster do or will. Without any, unfinished runs were interrupted.
    """
    display = Display(jobs, {job.digest for job in jobs})
    if watch:
        with displayed(display):
            wait_for_end(display, alive)
    is_alive = alive()
    for run in display.runs.values():
        run.refresh()
        if run.status == "running" and not is_alive:
            run.status = "interrupted"
    if not watch:
        console.print(display.table())
    print_line(display.outcome(is_alive))


def wait_for_end(display: Display, alive: Callable[[], bool]) -> None:
    """Wait until all runs are done or the sweep isn't alive, which is asked every ASK_EVERY seconds."""
    asked_at = -ASK_EVERY
    while not display.done():
        if time.monotonic() >= asked_at + ASK_EVERY:
            if not alive():
                return
            asked_at = time.monotonic()
        time.sleep(POLL_EVERY)


@contextmanager
def displayed(display: Display) -> Iterator[Display]:
    """Refresh the display from a thread while the `with` body runs.

    The first error of the display is logged and printed; none is raised.
    """
    with harmless():
        if console.is_terminal:
            display.live.start()
    thread = threading.Thread(target=display.watch, daemon=True)
    thread.start()
    try:
        yield display
    finally:
        display.over.set()
        thread.join()
        with harmless():
            display.refresh()
        with harmless():
            display.live.stop()


def cells(runs: list[RunState]) -> list[str]:
    """Return the cells of an arm's row after its name; its accuracy is the mean of its runs' latest."""
    statuses = [run.status for run in runs]
    accuracies = [run.accuracy for run in runs if run.accuracy is not None]
    return [
        f"{sum(status in DONE for status in statuses)} of {len(runs)}",
        str(statuses.count("running")),
        str(statuses.count("diverged")),
        f"{sum(accuracies) / len(accuracies):.1%}" if accuracies else "",
        *pace(runs),
    ]


def pace(runs: list[RunState]) -> tuple[str, str]:
    """Return the steps per second of all these runs together and the time that their remaining steps take, as text.

    The speed is that of the steps since each run's first evaluation in this sweep, over the time since the earliest of
    these. Both texts are empty before a run has a second one, and the time is also empty if no step remains.
    """
    now = time.monotonic()
    times = [(run.began, run.ended or now) for run in runs if run.began is not None]
    steps = sum(run.step - run.first for run in runs if run.first is not None)
    if not steps:
        return "", ""
    seconds = max(ended for _, ended in times) - min(began for began, _ in times)
    speed, remaining = steps / max(seconds, 1e-3), sum(run.remaining for run in runs)
    return rate(speed), duration(remaining / speed) if remaining else ""
