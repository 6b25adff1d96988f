"""`bnexp export`: results as tables for other programs, and as a table and figures for LaTeX."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bnexp.compare.arms import settings_of, swept_keys
from bnexp.compare.report import Comparison, Output, compare_directories, write_figures
from bnexp.compare.report_tables import Table, footnotes
from bnexp.runs.config import ConfigError, require_choice
from bnexp.runs.console import count, print_error, print_line
from bnexp.runs.directory import flatten
from bnexp.runs.files import replaced, write_whole
from bnexp.runs.record import RunRecord

Rows = list[list[Any]]
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "–": "--"}
SPECIAL |= {character: rf"\{character}" for character in "&%$#_{}"}


# ---- tables


def keys_of(runs: list[RunRecord]) -> list[str]:
    """Return the keys of the columns that tell runs apart: the seed, and each key whose values differ."""
    return ["seed", *(swept_keys(settings_of([run.config for run in runs])) if runs else [])]


def curves_table(runs: list[RunRecord]) -> tuple[list[str], Rows]:
    """Return the columns, and a row for each evaluation of each run on the validation images.

    The columns are the run's directory, seed, each key whose values differ, step, seconds of training, loss and
    accuracy (a fraction). Raises OSError, and as `RunRecord.validation`, where a run's tables can't be read.
    """
    keys = keys_of(runs)
    rows = [
        [str(run.directory), *(flatten(run.config).get(key) for key in keys), step, run.seconds[step], *values]
        for run in runs
        for step, row in run.validation.items()
        for values in [(row["loss"], row["accuracy"])]
    ]
    return ["directory", *keys, "step", "seconds", "loss", "accuracy"], rows


def runs_table(runs: list[RunRecord]) -> tuple[list[str], Rows]:
    """Return the columns, and a row for each run: its directory, keys as in `curves_table`, and its summary."""
    keys = keys_of(runs)
    rows = [
        [str(run.directory), *(flatten(run.config).get(key) for key in keys), *summary_values(run.summary)]
        for run in runs
    ]
    columns = ["status", "steps", "seconds", "steps_per_second", "final_validation_accuracy"]
    return ["directory", *keys, *columns, "test_accuracy", "test_loss"], rows


def summary_values(summary: dict[str, Any]) -> list[Any]:
    """Return the values of a summary in the order of the columns of `runs_table`; None for what it lacks."""
    test, validation = summary.get("test") or {}, summary.get("validation") or {}
    values = [summary.get(key) for key in ("status", "steps", "seconds", "steps_per_second")]
    return [*values, validation.get("final"), test.get("accuracy"), test.get("loss")]


def write_csv(path: Path, columns: list[str], rows: Rows) -> None:
    """Write a table as CSV, in UTF-8; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_whole(path, text.getvalue())


def write_parquet(path: Path, columns: list[str], rows: Rows) -> None:
    """Write a table as Parquet. A column of values of several types, as lists and numbers, becomes one of text.

    Raises ConfigError without pyarrow, which is an extra.
    """
    try:
        import pyarrow  # noqa: PLC0415 - an extra
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("--to parquet needs pyarrow: pip install 'bnexp[parquet]'") from error
    values = dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))
    table = pyarrow.table({name: one_type(column) for name, column in values.items()})
    with replaced(path) as temporary:
        pyarrow.parquet.write_table(table, temporary)


def one_type(column: list[Any]) -> list[Any]:
    """Return a column as it is if its values have one type, numbers being one, else as text; None stays None."""
    kinds = {float if type(value) is int else type(value) for value in column if value is not None}
    if len(kinds) <= 1:
        return column
    return [None if value is None else str(value) for value in column]


# ---- LaTeX


def latex(comparison: Comparison) -> str:
    """Return the comparison's tables in LaTeX (packages booktabs and graphicx), with the notes as comments."""
    lines = ["% \\usepackage{booktabs,graphicx}", *(f"% {line}" for line in footnotes(comparison.results))]
    for panel in comparison.panels:
        lines += [f"% {panel.name}"] if panel.name else []
        lines += tabular(panel.table)
    files = [comparison.output.path(name).name for name in ("compare.pdf", "times.pdf")]
    return "\n".join([*lines, *(rf"% \includegraphics[width=\linewidth]{{{name}}}" for name in files), ""])


def tabular(table: Table) -> list[str]:
    """Return a table as the lines of a tabular environment."""
    header, rows = table
    body = [" & ".join(map(escaped, cells)) + r" \\" for cells in rows]
    columns = "l" + "r" * (len(header) - 1)
    first = " & ".join(map(escaped, header)) + r" \\"
    return [
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        first,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]


def escaped(text: str) -> str:
    """Escape text for LaTeX."""
    return "".join(SPECIAL.get(character, character) for character in text)


# ---- the command


def export(directories: list[Path], to: str, by: str | None, out: Path | None) -> None:
    """Write the runs in and below some directories in a format, and print the files.

    to: csv or parquet (curves and runs, a table each) or latex (the comparison's tables and figures). by, out: as for
    `bnexp report`. Raises ConfigError for another format, and as `compare_directories` does.
    """
    require_choice("--to", to, FORMATS)
    comparison = compare_directories(directories, by, out)
    files = FORMATS[to](comparison)
    print_line(f"{count(len(comparison.planned.runs), 'run')}: {', '.join(map(str, files))}")


def export_latex(comparison: Comparison) -> list[Path]:
    """Write compare.tex, compare.pdf and times.pdf; return their paths."""
    files = [comparison.output.path(name) for name in ("compare.tex", "compare.pdf", "times.pdf")]
    write_whole(files[0], latex(comparison))
    write_figures(comparison.title, comparison.panels, comparison.notice, ([files[1]], [files[2]]))
    return files


def tables(suffix: str, write: Callable[[Path, list[str], Rows], None]) -> Callable[[Comparison], list[Path]]:
    """Return the function that writes the tables of curves and runs of a comparison, and returns their paths."""

    def export_tables(comparison: Comparison) -> list[Path]:
        runs, files = readable(comparison.planned.runs), list[Path]()
        for name, (columns, rows) in {"curves": curves_table(runs), "runs": runs_table(runs)}.items():
            files.append(Output(comparison.output.folder, "").path(f"{name}.{suffix}"))
            write(files[-1], columns, rows)
        return files

    return export_tables


def readable(runs: list[RunRecord]) -> list[RunRecord]:
    """Return the runs whose tables can be read; print an error for each other one."""
    found = []
    for run in runs:
        try:
            curves_table([run])
        except (OSError, ValueError, LookupError, TypeError, csv.Error) as error:
            print_error(f"{run.directory} is left out: {error}")
        else:
            found.append(run)
    return found


FORMATS: dict[str, Callable[[Comparison], list[Path]]] = {
    "csv": tables("csv", write_csv),
    "parquet": tables("parquet", write_parquet),
    "latex": export_latex,
}
