"""What a person sees while bnexp works: progress and tables on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

if TYPE_CHECKING:
    from bnexp.engine import Evaluation

PLAIN_WIDTH = 120  # columns of a table that goes to a file
WHOLE = Column(no_wrap=True)
LINES_EVERY = 10.0  # seconds between plain lines

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

_told_uncompiled = False


def say(text: str) -> None:
    console.print(escape(text), soft_wrap=True)


def complain(text: str) -> None:
    """One line on standard error, whatever the text holds."""
    errors.print(escape("bnexp: " + " ".join(text.split())), soft_wrap=True)


class TrainingDisplay:
    """Progress of one run: a bar on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, title: str) -> None:
        self.title, self.steps = title, 0
        self.line_at = time.monotonic() + LINES_EVERY
        self.bar = Progress(
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

    def prepare(self, steps: int, compiling: bool, compiler: bool) -> None:
        self.steps = steps
        self.task = self.bar.add_task(escape(self.title), total=steps, latest="compiling…" if compiling else "")
        if not compiler:
            tell_uncompiled()

    def progress(self, step: int, seconds: float) -> None:
        self.bar.update(self.task, completed=step)

    def evaluated(self, step: int, result: "Evaluation") -> None:
        latest = f"accuracy {result.accuracy:.1%}"
        speed = self.bar.tasks[0].speed
        self.bar.update(self.task, completed=step, latest=f"{speed or 0:,.0f} steps/s, {latest}")
        if not console.is_terminal and time.monotonic() > self.line_at and step < self.steps:
            say(f"{self.title}: step {step:,} of {self.steps:,}, {latest}")
            self.line_at = time.monotonic() + LINES_EVERY


def tell_uncompiled() -> None:
    """Say once that this machine can't compile."""
    global _told_uncompiled  # noqa: PLW0603 - once a process
    if not _told_uncompiled:
        say("no C++ compiler (g++ or clang++) was found: steps run uncompiled, at about half the speed")
        _told_uncompiled = True


def describe(summary: dict[str, Any]) -> str:
    """A run's outcome in a line."""
    if summary["status"] == "failed":
        return f"failed: {summary['error']}"
    if summary["status"] == "interrupted":
        return f"interrupted at step {summary['steps']:,}"
    parts = [f"test accuracy {summary['test']['accuracy']:.1%}"]
    if summary["status"] == "diverged":
        parts.insert(0, f"diverged at step {summary['diverged_at']:,}")
    if summary["steps_to"]["90"] is not None:
        parts.append(f"90% after {summary['steps_to']['90']:,} steps ({summary['seconds_to']['90']:.1f} s)")
    if summary["steps_per_second"]:
        parts.append(f"{summary['steps_per_second']:,.0f} steps/s")
    return ", ".join(parts)


def show_table(title: str, header: list[str], rows: list[list[str]], numbers: bool = True) -> None:
    """A table whose first column is words and, where `numbers`, whose others are numbers."""
    table = Table(title=escape(title), title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    for number, name in enumerate(header):
        table.add_column(escape(name), justify="right" if numbers and number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    wide = console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)
    wide.print(table)
