"""What a person sees while runs train: bars and a live table on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from rich.box import SIMPLE_HEAD
from rich.live import Live
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table

from bnexp.console import console, describe, duration, harmless, literal, say
from bnexp.sweep import Job
from bnexp.train import Member
from bnexp.workers import Closed, Evaluated, Event, Opened, Progress

WHOLE = Column(no_wrap=True)
LINES_EVERY = 10.0  # seconds between plain lines


D = TypeVar("D", bound=AbstractContextManager[object])


@contextmanager
def shown(display: D) -> Iterator[D]:
    """The display, started and stopped; where that fails, what it shows is all that is lost."""
    with harmless():
        display.__enter__()
    try:
        yield display
    finally:
        with harmless():
            display.__exit__(None, None, None)


class TrainingDisplay:
    """Progress of one run: a bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, title: str) -> None:
        self.title, self.steps = title, 0
        self.line_at = time.monotonic() + LINES_EVERY
        self.bar = Bar(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=1)),
            BarColumn(bar_width=10),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[latest]}", table_column=WHOLE),
            TimeRemainingColumn(compact=True, table_column=WHOLE),
            expand=True,
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def prepare(self, steps: int, compiling: bool) -> None:
        self.steps = steps
        self.task = self.bar.add_task(literal(self.title), total=steps, latest="compiling…" if compiling else "")

    def progress(self, step: int) -> None:
        self.bar.update(self.task, completed=step)

    def evaluated(self, member: Member) -> None:
        step, latest = member.steps[-1], f"accuracy {member.accuracy[-1]:.1%}"
        speed = self.bar.tasks[0].speed
        self.bar.update(self.task, completed=step, latest=f"{speed or 0:,.0f} steps/s, {latest}")
        if not console.is_terminal and time.monotonic() > self.line_at and step < self.steps:
            say(f"{self.title}: step {step:,} of {self.steps:,}, {latest}")
            self.line_at = time.monotonic() + LINES_EVERY

    def closed(self, member: Member) -> None:
        pass  # the command says what became of it


@dataclass
class RunState:
    """What the display of a sweep knows of a run. Times are seconds of a monotonic clock."""

    job: Job
    status: str = "waiting"  # waiting | running | finished | diverged | failed | interrupted
    step: int = 0
    first: int = 0  # step that it goes on from
    accuracy: float | None = None
    began: float | None = None
    ended: float | None = None

    @property
    def left(self) -> int:
        return 0 if self.ended else self.job.config.steps - self.step


class SweepDisplay:
    """Progress of a sweep: a live table of its arms on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, jobs: list[Job]) -> None:
        self.runs = {job.number: RunState(job) for job in jobs}
        self.line_at = time.monotonic() + LINES_EVERY
        self.live = Live(get_renderable=self.latest, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def hear(self, event: Event) -> None:
        match event:
            case Opened(job=job, step=step):
                run = self.runs[job]
                run.status, run.step, run.first = "running", step, step
            case Progress(jobs=jobs, step=step):
                for job in jobs:
                    self.advance(self.runs[job], step)
            case Evaluated(job=job, step=step, accuracy=accuracy):
                self.advance(self.runs[job], step)
                self.runs[job].accuracy = accuracy
            case Closed(job=job, directory=directory, summary=summary):
                self.runs[job].status, self.runs[job].ended = summary["status"], time.monotonic()
                say(f"{self.runs[job].job.title}: {describe(summary)} → {directory}")
        if not console.is_terminal and time.monotonic() > self.line_at:
            say(self.line())
            self.line_at = time.monotonic() + LINES_EVERY

    def advance(self, run: RunState, step: int) -> None:
        if run.ended is None:
            run.step = max(run.step, step)
        if run.began is None and step:
            run.began = time.monotonic()

    def restart(self, jobs: list[int]) -> None:
        for job in jobs:
            self.runs[job] = RunState(self.runs[job].job)

    def step_of(self, job: int) -> int:
        return self.runs[job].step

    def done(self) -> str:
        return f"{sum(run.status in DONE for run in self.runs.values())} of {len(self.runs)} runs done"

    def line(self) -> str:
        """3 of 20 runs done, 5 running, 5,100 steps/s, 40 s left"""
        runs = list(self.runs.values())
        parts = [self.done(), f"{sum(run.status == 'running' for run in runs)} running"]
        speed, left = rate(runs), sum(run.left for run in runs)
        if speed:
            parts.append(f"{speed:,.0f} steps/s")
        if speed and left:
            parts.append(f"{duration(left / speed)} left")
        return ", ".join(parts)

    def latest(self) -> Table:
        """For the thread that draws it twice a second."""
        with harmless():
            return self.table()
        return Table()

    def table(self) -> Table:
        table = Table(box=SIMPLE_HEAD, header_style="bold", caption_justify="left")
        table.add_column("arm", overflow="fold")
        for name in ("done", "running", "diverged", "accuracy", "steps/s", "left"):
            table.add_column(name, justify="right")
        arms: dict[str, list[RunState]] = {}
        for run in self.runs.values():
            arms.setdefault(run.job.arm, []).append(run)
        for name, runs in arms.items():
            table.add_row(literal(name), *cells(runs))
        table.caption = self.line()
        return table


DONE = ("finished", "diverged", "failed")


def cells(runs: list[RunState]) -> list[str]:
    """One arm's row. Accuracy is the mean of its runs' latest."""
    statuses = [run.status for run in runs]
    known = [run.accuracy for run in runs if run.accuracy is not None]
    speed = rate(runs)
    left = sum(run.left for run in runs)
    return [
        f"{sum(status in DONE for status in statuses)} of {len(runs)}",
        str(statuses.count("running")),
        str(statuses.count("diverged")),
        f"{sum(known) / len(known):.1%}" if known else "",
        f"{speed:,.0f}" if speed else "",
        duration(left / speed) if speed and left else "",
    ]


def rate(runs: list[RunState]) -> float:
    """Steps a second of all these runs together, since the first of them began."""
    now = time.monotonic()
    times = [(run.began, run.ended or now) for run in runs if run.began is not None]
    if not times:
        return 0.0
    seconds = max(ended for _, ended in times) - min(began for began, _ in times)
    return sum(run.step - run.first for run in runs) / max(seconds, 1e-3)
