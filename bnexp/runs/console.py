"""Print lines, errors and tables on the terminal."""

import logging
import multiprocessing
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

PLAIN_WIDTH = 120  # columns of a table that is printed to a file
TIME = "%Y-%m-%d %H:%M:%S "  # before a line of a log
LONGEST = 1000  # characters of an error

if os.environ.get("COLUMNS", "").strip() == "0":  # a terminal without a size, on which rich would print nothing
    del os.environ["COLUMNS"]
is_terminal = sys.stdout is not None and sys.stdout.isatty()
# rich alone would take a pipe for a terminal where FORCE_COLOR is set, as Jupyter does for the commands of a notebook
console = Console(highlight=False, emoji=False, force_terminal=None if is_terminal else False)
errors = Console(stderr=True, highlight=False, emoji=False)

_printed: set[str] = set()
_display_failed = False


@contextmanager
def harmless() -> Iterator[None]:
    """Suppress errors of the display in the `with` body, so that none ends a run.

    The first one of a process is logged and, except in a worker process, printed. rich raises SystemExit for a pipe
    that nobody reads; it is suppressed, too.
    """
    global _display_failed  # noqa: PLW0603 - once a process
    try:
        yield
    except (Exception, SystemExit) as error:
        if not _display_failed:
            _display_failed = True
            logging.getLogger("bnexp").info("the display failed, the runs go on", exc_info=error)
            if multiprocessing.parent_process() is None:
                print_error(f"the display failed ({type(error).__name__}: {error}): the runs go on")


def printable(text: str) -> str:
    """Escape characters that are not printable, so that no name of a file or run controls the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def literal(text: str) -> str:
    """Escape rich's markup and characters that are not printable."""
    return escape(printable(text))


def print_line(text: str) -> None:
    """Print a text on standard output with its line breaks, unwrapped.

    Characters that are not printable are escaped, and rich's markup is printed as it is.
    """
    with harmless():
        console.print("\n".join(map(literal, text.splitlines())), soft_wrap=True)


def log_line(text: str) -> None:
    """Print a line of a command's progress as `print_line` does; where the output is no terminal, after the time."""
    print_line(text if console.is_terminal else f"{datetime.now().strftime(TIME)}{text}")


def print_error(text: str) -> None:
    """Print a text on standard error after "bnexp: ", as one line that is cut off after LONGEST characters."""
    line = " ".join(f"bnexp: {text}".split())
    with harmless():
        errors.print(literal(line if len(line) <= LONGEST else f"{line[:LONGEST]}…"), soft_wrap=True)


def command(*arguments: object) -> str:
    """Return a command line of bnexp, with arguments quoted for a shell."""
    return shlex.join(["bnexp", *map(str, arguments)])


def print_once(text: str, printer: Callable[[str], None] = print_line) -> None:
    """Print a text by `print_line` or `print_error`, unless this process has printed it by this function before."""
    if text not in _printed:
        _printed.add(text)
        printer(text)


def describe(summary: dict[str, Any]) -> str:
    """Describe a run's summary in a line.

    The line has the error of a failed run, the step of an interrupted one, and otherwise the test accuracy and, where
    the summary has them, the step of a divergence, the time to 90% and the speed.
    """
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
        parts.append(f"{rate(summary['steps_per_second'])} steps/s")
    return ", ".join(parts)


def count(number: int, noun: str) -> str:
    """Return a number with a noun, in the plural unless the number is 1: "1 run", "2 runs"."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{plural * (number != 1)}"


def rate(per_second: float) -> str:
    """Return a speed as text, with a decimal below 10."""
    return f"{per_second:,.0f}" if per_second >= 9.95 else f"{per_second:.1f}"


def duration(seconds: float) -> str:
    """Return seconds as text in a suitable unit: "89 s", "2 min". The shortest duration is "1 s"."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def duration_range(seconds: float) -> str:
    """Return an estimate of a duration as text, from half of it to its double: "2 to 8 min"."""
    low, high = duration(seconds / 2), duration(seconds * 2)
    if low == high:
        return low
    same = low.split()[1] == high.split()[1]
    return f"{low.split()[0] if same else low} to {high}"


def show_table(title: str, header: list[str], rows: list[list[str]], numbers: bool = True) -> None:
    """Print a table whose first column is text and whose others are numbers, or text where `numbers` is false.

    No number or word is broken: a terminal that is too narrow shows only the first columns, at least two, and a line
    names the others. Only text after the first column wraps, between words.
    """
    columns = [list(map(printable, column)) for column in zip(header, *rows, strict=True)]
    wraps = [not numbers and place > 0 for place in range(len(columns))]
    widths = [narrowest(column, wrap) for column, wrap in zip(columns, wraps, strict=True)]
    width = console.width if console.is_terminal else max(PLAIN_WIDTH, table_width(widths))
    shown = max(
        (n for n in range(2, len(columns) + 1) if table_width(widths[:n]) <= width), default=min(2, len(columns))
    )
    table = Table(header_style="bold", box=SIMPLE_HEAD)
    for place, (name, *_) in enumerate(columns[:shown]):
        side: JustifyMethod = "right" if numbers and place else "left"
        table.add_column(escape(name), justify=side, no_wrap=not wraps[place], min_width=widths[place])
    for cells in zip(*(column[1:] for column in columns[:shown]), strict=True):
        table.add_row(*map(escape, cells))
    wide = max(width, table_width(widths[:shown]))
    page = Console(highlight=False, emoji=False, width=wide, force_terminal=console.is_terminal)
    page.print(literal(title), style="italic", soft_wrap=True)
    page.print(table)
    if shown < len(columns):
        print_line(f"a wider terminal also shows: {', '.join(header[shown:])}")


def narrowest(column: list[str], wrap: bool) -> int:
    """Return the smallest width of a column: its longest cell, or its longest word if cells wrap."""
    return max(cell_len(part) for cell in column for part in (cell.split() if wrap else [cell]))


def table_width(widths: list[int]) -> int:
    """Return a table's width from those of its columns, each of which has three characters of space and border."""
    return sum(width + 3 for width in widths) + 1
