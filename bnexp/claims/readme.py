"""Make results/README.md: the records of claims.json as tables, the verdict first."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bnexp.claims.claim import BLOCKS, SEEDS, Verdict
from bnexp.claims.judge import BOTH, MORE_SEEDS
from bnexp.claims.record import Record
from bnexp.compare.report_tables import markdown_table, marked_down
from bnexp.runs.console import count
from bnexp.runs.files import read_json

HEADING = "# Results: published claims"
HEADER = ["verdict", "statement", "published", "ours", "theirs", "n", "smallest detectable deviation", "claim"]
FIRST_EDITION = "first_edition.json"  # the verdicts of the first edition: id → verdict
EXPLAINED = [
    "Made by `bnexp reproduce` from `claims.json`, which has every seed's value, each rule in full, its sweep's",
    "command, p, seconds of training, commit and machine. `bnexp reproduce CLAIM` tests a claim again. BN is batch",
    "normalization, GN group normalization; a statement may refer to the one above it. An id like",
    "`udacity.relu_0.01_0.05.none` names a cell of the lesson: activation, learning rate, scale of the initial",
    "weights and norm.",
    "",
    f"Every claim is judged twice by a rule that was fixed before: on seeds {BLOCKS[0]} to {SEEDS - 1}, and on seeds",
    f"{BLOCKS[1]} to {BLOCKS[1] + SEEDS - 1}. A verdict holds if both agree; if they don't, {MORE_SEEDS} of each",
    "decide together. Where a rule was changed after a look at its result, that is said, and the second block alone",
    "decides. *Ours* are both blocks together, *theirs* what others got who executed the lesson's notebook again, *n*",
    "our seeds. The *smallest detectable deviation* from the claim would have been called a contradiction with the",
    "seeds of one block: of a mean or a single run in 8 of 10 cases, simulated from our runs; of a step or a number of",
    "seeds with the runs as they are. Tests of means are bootstrap-t in this edition, sign flips in the first. By kind",
    "of claim, what is measured and what makes a verdict of it:",
    "",
    "- a cell of the lesson: our mean, and the 95% prediction interval of one run (normal on the scale of the logit;",
    "  runs at chance are counted apart). Reproduced where the published run is in it, as many of the reruns as 95%",
    "  allows, and the means are equivalent: within 0.25 points, or a quarter of the difference between the published",
    "  arms. Contradicted where the interval of the difference of the means lies wholly outside of that margin. An",
    "  interval wider than half the difference between the arms, and than 0.5 points, decides nothing.",
    "- another published run: the prediction interval alone.",
    "- one arm better: the mean difference, seed by seed, with its 95% bootstrap-t interval, and p < 0.05 after Holm's",
    "  correction over the family of claims, which was fixed when they were written.",
    "- as good as: the same; the interval lies inside a margin stated beforehand.",
    "- a crossing, as 90% of validation accuracy at step 500: the prediction interval of a run's step, log-normal;",
    "  a run that never gets there is censored. Reproduced where it overlaps the published step, read off with 10%.",
    "- a rate: the share of seeds, with its Wilson interval.",
    "- an identity holds for every network: the largest error in float64. It is no evidence, and is not counted.",
]


def markdown(records: list[Record], out: Path) -> str:
    """Return the content of README.md in the folder `out`.

    It has a table for each source and figure, the identities, what differs from the first edition, remarks on the
    claims that were not reproduced, and the machines.
    """
    facts, identities = facts_of(records), [entry for entry in records if entry["kind"] == "identity"]
    lines = [HEADING, "", summary(records), "", *EXPLAINED, ""]
    for source, entries in grouped(facts, source_of).items():
        lines += [f"## {source}", ""]
        for figure, claims in grouped(entries, lambda entry: entry["figure"]).items():
            lines += [f"![{figure}](figures/{figure}.svg)", ""] if figure else []
            lines += [*markdown_table(HEADER, [row(entry) for entry in claims], "---"), ""]
    if identities:
        rows = [[entry["verdict"], entry["statement"], ours_text(entry), entry["id"]] for entry in identities]
        lines += [
            "## Identities",
            "",
            *markdown_table(["verdict", "statement", "largest error", "claim"], rows, "---"),
            "",
        ]
    lines += changes(records, out)
    lines += ["## Not as published", ""]
    lines += [remark(entry) for entry in facts if entry["verdict"] != Verdict.REPRODUCED]
    machines = dict.fromkeys(block["machine"] for entry in records for block in entry["blocks"].values())
    lines += ["", *(f"- {marked_down(machine)}" for machine in machines if machine), ""]
    lines += ["Speed: [performance.md](performance.md).", ""] if (out / "performance.md").exists() else []
    return "\n".join(lines)


def facts_of(records: list[Record]) -> list[Record]:
    """Return the records of facts, which could have failed, unlike identities."""
    return [entry for entry in records if entry["kind"] == "fact"]


def summary(records: list[Record]) -> str:
    """Return as text how many facts there are, how many could have failed, and how many did."""
    facts = facts_of(records)
    could = [entry for entry in facts if entry["detectable"] and all(entry["detectable"].values())]
    failed = sum(entry["verdict"] == Verdict.CONTRADICTED for entry in could)
    changed = sum(bool(entry["changed"]) for entry in facts)
    text = f"{tally(records)}. {len(could)} of them could have failed, and {failed} did."
    if changed:
        text += f" {count(changed, 'rule')} had been changed after a look at the first block: the second alone decides."
    identities = len(records) - len(facts)
    return text + (f" Besides, {identities} identit{'y' if identities == 1 else 'ies'}." if identities else "")


def tally(records: list[Record]) -> str:
    """Return as text the number of facts, and how many have each verdict."""
    numbers = Counter(entry["verdict"] for entry in facts_of(records))
    return f"{count(sum(numbers.values()), 'independent fact')}: " + ", ".join(
        f"{numbers[verdict]} {verdict}" for verdict in Verdict
    )


def source_of(entry: Record) -> str:
    """Return a claim's publication without the place in it: "Wu & He 2018" for "Wu & He 2018, §3.1"."""
    return str(entry["source"]).split(",", maxsplit=1)[0].split(";", maxsplit=1)[0]


def grouped(records: list[Record], key: Callable[[Record], str | None]) -> dict[str | None, list[Record]]:
    """Group the records by a key, in order of first appearance."""
    groups: dict[str | None, list[Record]] = {}
    for entry in records:
        groups.setdefault(key(entry), []).append(entry)
    return groups


# ---- rows


def row(entry: Record) -> list[str]:
    """Return a claim's cells under HEADER."""
    theirs = labelled(entry, lambda result: estimate_text(result["theirs"], result) if result["theirs"] else "")
    detectable = "; ".join(dict.fromkeys(text for text in entry["detectable"].values() if text))
    return [
        entry["verdict"],
        entry["statement"],
        entry["published"],
        ours_text(entry),
        theirs,
        n_text(entry),
        detectable,
        entry["id"],
    ]


def shown_block(entry: Record) -> str:
    """Return the block whose numbers are shown: both together, but the second alone where that one decides."""
    blocks: list[str] = [result["block"] for result in entry["results"]]
    wanted = [str(BLOCKS[1]), *blocks] if entry["changed"] else [BOTH, str(BLOCKS[1]), *blocks]
    return next(block for block in wanted if block in blocks)


def shown(entry: Record) -> list[Record]:
    """Return the results of the block whose numbers are shown."""
    return [result for result in entry["results"] if result["block"] == shown_block(entry)]


def labelled(entry: Record, text: Callable[[Record], str]) -> str:
    """Return a text of each result that is shown, after the name of its rule."""
    return "; ".join(f"{result['rule']} {text(result)}".strip() for result in shown(entry) if text(result))


def ours_text(entry: Record) -> str:
    """Return what was measured, as text: of each rule of the claim."""
    return labelled(entry, lambda result: estimate_text(as_estimate(result), result))


def as_estimate(result: Record) -> Record:
    """Return a result's mean and interval, under the names that `theirs` has."""
    return {"mean": result["value"], "low": result["low"], "high": result["high"]}


def estimate_text(estimate: Record, result: Record) -> str:
    """Return an estimate with its unit and interval, if any, or a dash where nothing was measured."""
    if estimate["mean"] is None and estimate["low"] is None:
        return "never" if result["unit"] == "steps" and result["n"] else "–"
    value, low, high = (short(estimate[key], result) for key in ("mean", "low", "high"))
    unit = {"": "", "%": " points" if result["difference"] else "%"}.get(result["unit"], f" {result['unit']}")
    return f"{value}{unit}" if estimate["low"] is None else f"{value}{unit} [{low}, {high}]"


def short(value: float | None, result: Record) -> str:
    """Return a number as text, with its sign in a difference; None, by which JSON holds infinity, is "never".

    Percentages have two decimals; other numbers have four digits, or no decimals from 1,000 on.
    """
    if value is None:
        return "never"
    sign = "+" if result["difference"] else ""
    if result["unit"] == "%":
        return f"{value:{sign}.2f}"
    return f"{value:{sign},.0f}" if abs(value) >= 1000 else f"{value:{sign}.4g}"


def n_text(entry: Record) -> str:
    """Return n as text; where runs are missing, with how many there are of those planned: "8 (8 of 10 runs)"."""
    blocks = [entry["blocks"][block] for block in entry["blocks"] if shown_block(entry) in (block, BOTH)]
    finished, planned = (sum(block[key] for block in blocks) for key in ("runs", "planned_runs"))
    n = min((result["n"] for result in shown(entry)), default=0)
    return f"{n}" + (f" ({finished} of {planned} runs)" if finished < planned else "")


# ---- remarks


def remark(entry: Record) -> str:
    """Return the line on a claim that was not reproduced: the reason, what each block found, and the notes."""
    details = [f"seeds from {block} on: {text}" for block in entry["blocks"] if (text := block_text(entry, block))]
    changed = f"the rule was changed after a look: {entry['changed']}" if entry["changed"] else ""
    parts = [entry["why"], *details, changed, entry["note"]]
    text = ". ".join(part.rstrip(".") for part in parts if part)
    return (
        f"- **{entry['id']}** {entry['verdict']} (published: {marked_down(entry['published'])}): {marked_down(text)}."
    )


def block_text(entry: Record, block: str) -> str:
    """Return what a block found, with the details of its rules and the remarks on its runs."""
    results = [result for result in entry["results"] if result["block"] == block]
    texts = [
        f"{result['rule']} {estimate_text(as_estimate(result), result)}".strip()
        + (f", {result['detail']}" if result["detail"] else "")
        for result in results
    ]
    remarks = entry["blocks"][block]["remarks"].values()
    return "; ".join([*texts, *dict.fromkeys(remarks)])


def changes(records: list[Record], out: Path) -> list[str]:
    """Return the section on verdicts that differ from the first edition's; empty where the folder has none of these."""
    path = out / FIRST_EDITION
    if not path.exists():
        return []
    first: dict[str, str] = read_json(path)
    lines = ["## What changed from the first edition", ""]
    for entry in records:
        before = Counter(first[old] for old in dict.fromkeys([entry["id"], *entry["replaces"]]) if old in first)
        now = "an identity" if entry["kind"] == "identity" else entry["verdict"]
        if before and set(before) != {now}:
            was = " and ".join(f"{number} {verdict}" for verdict, number in before.items())
            changed = f"the rule was changed: {entry['changed']}" if entry["changed"] else ""
            why = "; ".join(part.rstrip(".") for part in (entry["why"], changed) if part)
            lines.append(f"- {entry['id']}: {was}; now {now}" + (f" ({marked_down(why)})." if why else "."))
    known = {old for entry in records for old in [entry["id"], *entry["replaces"]]}
    missing = [old for old in first if old not in known]
    lines += [f"- Not judged in this edition: {', '.join(missing)}."] if missing else []
    return [*lines, ""]
