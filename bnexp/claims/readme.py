"""Make results/README.md: the records of claims.json as tables, the verdict first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bnexp.claims.claim import Verdict
from bnexp.compare.report_tables import markdown_table, marked_down
from bnexp.runs.console import count

Record = dict[str, Any]  # a claim's entry in claims.json
HEADING = "# Results: published claims"
HEADER = ["verdict", "statement", "measured", "n", "claim"]
EXPLAINED = [
    "Made by `bnexp reproduce` from `claims.json`, which has each claim's published figure, its rule in full, its",
    "sweep's command, its p, seconds of training, commit and machine. `bnexp reproduce CLAIM` tests a claim again.",
    "BN is batch normalization, GN group normalization; a statement may refer to the one above it. An id like",
    "`udacity.relu_0.01_0.05.none.test` names a cell of the lesson: activation, learning rate, scale of the initial",
    "weights, norm and data; where it ends in `.again`, the lesson printed that cell twice.",
    "",
    "A rule is fixed before its result is seen; where a look came first, the claim's note says so. By kind of claim,",
    "what was measured and what makes a verdict of it (n: seeds, of throughput: rounds):",
    "",
    "- a published single run: our mean and the 95% prediction interval of one run. Reproduced where the published",
    "  figure is in it, or within the tolerance of our mean. One such claim in twenty is contradicted by chance.",
    "- one arm better: the mean difference, seed by seed, with its 95% BCa interval, or what was measured, where the",
    "  other side is a number. Sign-flip permutation, Holm over the claims of a source, p < 0.05.",
    "- as good as: the same; the interval lies inside a margin stated beforehand.",
    "- a crossing, as 90% of validation accuracy at step 500: the mean step, where never counts as the last one, and",
    "  from the evaluation before the earliest seed's to the latest seed's. Reproduced where the published step, give",
    "  or take an evaluation, lies between.",
    "- a rate: the share of seeds, with its Wilson interval.",
    "- an identity: the largest error in float64, at most 1e-10.",
]


def markdown(records: list[Record], out: Path) -> str:
    """Return the content of README.md in the folder `out`.

    It has a table for each source and figure, then remarks on the claims that were not reproduced, and the machines.
    """
    lines = [HEADING, "", tally(records) + ".", "", *EXPLAINED, ""]
    for source, entries in grouped(records, source_of).items():
        lines += [f"## {source}", ""]
        for figure, claims in grouped(entries, lambda entry: entry["figure"]).items():
            lines += [f"![{figure}](figures/{figure}.svg)", ""] if figure else []
            lines += [*markdown_table(HEADER, [row(entry) for entry in claims], "---"), ""]
    lines += ["## Not as published", ""]
    lines += [remark(entry) for entry in records if entry["verdict"] != Verdict.REPRODUCED]
    machines = dict.fromkeys(entry["machine"] for entry in records)
    lines += ["", *(f"- {marked_down(machine)}" for machine in machines if machine), ""]
    lines += ["Speed: [performance.md](performance.md).", ""] if (out / "performance.md").exists() else []
    return "\n".join(lines)


def source_of(entry: Record) -> str:
    """Return a claim's publication without the place in it: "Wu & He 2018" for "Wu & He 2018, §3.1"."""
    return str(entry["source"]).split(",", maxsplit=1)[0].split(";", maxsplit=1)[0]


def grouped(records: list[Record], key: Callable[[Record], str | None]) -> dict[str | None, list[Record]]:
    """Group the records by a key, in order of first appearance."""
    groups: dict[str | None, list[Record]] = {}
    for entry in records:
        groups.setdefault(key(entry), []).append(entry)
    return groups


def row(entry: Record) -> list[str]:
    """Return a claim's cells under HEADER."""
    return [entry["verdict"], entry["statement"], measured_text(entry), n_text(entry), entry["id"]]


def measured_text(entry: Record) -> str:
    """Return the measured value with its unit and interval, if any, or a dash where nothing was measured."""
    measured = entry["measured"]
    if measured["value"] is None:
        return "–"
    value, low, high = (short(measured[key], measured) for key in ("value", "low", "high"))
    unit = {"": "", "%": " points" if measured["difference"] else "%"}.get(measured["unit"], f" {measured['unit']}")
    return f"{value}{unit}" if measured["low"] is None else f"{value}{unit} [{low}, {high}]"


def short(value: float | None, measured: Record) -> str:
    """Return a number as text, with its sign in a difference; None, by which JSON holds infinity, is "never".

    Percentages have two decimals; other numbers have four digits, or no decimals from 1,000 on.
    """
    if value is None:
        return "never"
    sign = "+" if measured["difference"] else ""
    if measured["unit"] == "%":
        return f"{value:{sign}.2f}"
    return f"{value:{sign},.0f}" if abs(value) >= 1000 else f"{value:{sign}.4g}"


def n_text(entry: Record) -> str:
    """Return n as text; where runs are missing, with how many there are of those planned: "8 (8 of 10 runs)"."""
    finished, planned = entry.get("runs", 0), entry.get("planned_runs", 0)
    return f"{entry['n']}" + (f" ({finished} of {planned} runs)" if finished < planned else "")


def tally(records: list[Record]) -> str:
    """Return as text the number of claims, and how many have each verdict."""
    numbers = {verdict: sum(entry["verdict"] == verdict for entry in records) for verdict in Verdict}
    return f"{count(len(records), 'claim')}: " + ", ".join(f"{number} {verdict}" for verdict, number in numbers.items())


def remark(entry: Record) -> str:
    """Return the line on a claim that was not reproduced: the reason, the details and the note."""
    parts = [entry["why"], entry["measured"]["detail"], entry["note"]]
    text = ". ".join(part.rstrip(".") for part in parts if part)
    return (
        f"- **{entry['id']}** {entry['verdict']} (published: {marked_down(entry['published'])}): {marked_down(text)}."
    )
