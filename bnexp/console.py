"""What bnexp says: lines, complaints, tables."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

PLAIN_WIDTH = 120  # columns of a table that goes to a file

console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

_told_uncompiled = False


def say(text: str) -> None:
    console.print(escape(text), soft_wrap=True)


def complain(text: str) -> None:
    """One line on standard error, whatever the text holds."""
    errors.print(escape("bnexp: " + " ".join(text.split())), soft_wrap=True)


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
    if "test_recalibrated" in summary:
        parts.append(f"{summary['test_recalibrated']['accuracy']:.1%} recalibrated")
    if summary["status"] == "diverged":
        parts.insert(0, f"diverged at step {summary['diverged_at']:,}")
    if summary["steps_to"]["90"] is not None:
        parts.append(f"90% after {summary['steps_to']['90']:,} steps ({summary['seconds_to']['90']:.1f} s)")
    if summary["steps_per_second"]:
        parts.append(f"{summary['steps_per_second']:,.0f} steps/s")
    return ", ".join(parts)


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def show_table(title: str, header: list[str], rows: list[list[str]], numbers: bool = True) -> None:
    """A table whose first column is words and, where `numbers`, whose others are numbers."""
    table = Table(title=escape(title), title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    for number, name in enumerate(header):
        table.add_column(escape(name), justify="right" if numbers and number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    wide = console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)
    wide.print(table)
