"""`bnexp reproduce`: claims and their finished runs → verdicts, figures, claims.json and its README.md."""

import argparse
import math
import shlex
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from bnexp.claims.claim import Claim, Evidence, NoVerdictError, Runs, Sweep, Verdict
from bnexp.claims.registry import CLAIMS, family, pick
from bnexp.claims.rules import Directional, Sooner
from bnexp.config import ConfigError, RunConfig, require
from bnexp.console import count, show_table
from bnexp.console import print_line as say
from bnexp.files import read_json, write_whole
from bnexp.planned import without_flaws
from bnexp.report import markdown_table, marked_down, provenance
from bnexp.runs import complete_runs, config_digest, to_json
from bnexp.stats import Estimate, holm
from bnexp.storage import DamagedFileError

SWEEPS = Path("results/sweeps/claims")
SEEDS = 10
RECORD = "claims.json"
HEADING = "# Results: published claims"
TESTS = (Directional, Sooner)  # rules with a p
NO_MEASURE = (NoVerdictError, ConfigError, DamagedFileError, OSError)  # an arm without runs, a checkpoint that is gone
Record = dict[str, Any]
RunsOf = dict[str, Runs]  # sweep → its runs


# ---- what is asked for


@dataclass(frozen=True)
class Options:
    claims: list[Claim]
    listed: bool
    seeds: int
    out: Path


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"reproduce: {message}")


def take_options(arguments: list[str]) -> Options:
    """Raises ConfigError."""
    parser = Parser(prog="bnexp reproduce", description="Published claims, judged; without a name, all of them.")
    parser.add_argument("names", nargs="*", metavar="CLAIM", help="an id, or what ids begin with: udacity, wiki.sooner")
    parser.add_argument("--list", action="store_true", help="show them, and the time their runs still need here")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds an arm, 0 to N-1 (default {SEEDS})")
    parser.add_argument("--out", type=Path, default=SWEEPS, help=f"for {RECORD}, README.md, figures/ ({SWEEPS})")
    found = parser.parse_intermixed_args(arguments)
    require(1 <= found.seeds <= 1000, "--seeds", found.seeds, "a whole number from 1 to 1000")
    return Options(pick(found.names), found.list, found.seeds, found.out)


def own_sweeps(claims: list[Claim]) -> list[Sweep]:
    return list({sweep.name: sweep for claim in claims for sweep in claim.sweeps}.values())


def sweeps_of(claims: list[Claim]) -> list[Sweep]:
    """With those they start from, in an order in which they can run."""
    return list({step.name: step for sweep in own_sweeps(claims) for step in with_start(sweep)}.values())


def with_start(sweep: Sweep) -> list[Sweep]:
    return [sweep] if sweep.after is None else [*with_start(sweep.after), sweep]


def without(options: Options, impossible: dict[str, str]) -> Options:
    """Claims whose own sweeps can run. Raises ConfigError where none is left."""
    left = [claim for claim in options.claims if impossible.keys().isdisjoint(sweep.name for sweep in claim.sweeps)]
    if not left:
        raise ConfigError(next(iter(impossible.values())))
    return replace(options, claims=left)


def words_of(sweep: Sweep, seeds: int) -> list[str]:
    """The overrides of a sweep over its seeds, as one types them behind `bnexp train -m`."""
    return [*sweep.overrides.split(), f"seed=range({min(seeds, sweep.most_seeds or seeds)})"]


def folder_of(sweep: Sweep) -> Path:
    return SWEEPS / sweep.name


def command_of(sweep: Sweep, seeds: int) -> str:
    """What fills the folder, for a shell."""
    return shlex.join(["bnexp", "train", "-m", *words_of(sweep, seeds), f"hydra.sweep.dir={folder_of(sweep)}"])


def load_runs(claims: list[Claim], planned: dict[str, list[RunConfig]]) -> RunsOf:
    """Of every sweep the complete runs that were planned: a directory may hold others, of more seeds or older grids."""
    found: RunsOf = {}
    for sweep in own_sweeps(claims):
        there = complete_runs(folder_of(sweep))
        wanted = [config_digest(config) for config in planned.get(sweep.name, [])]
        found[sweep.name] = without_flaws([there[digest] for digest in wanted if digest in there])
    return found


def runs_for(claims: list[Claim], runs: RunsOf) -> Runs:
    return [run for sweep in own_sweeps(claims) for run in runs[sweep.name]]


def check_readme(out: Path) -> None:
    """Refuse to write over a README.md that is none of ours. Raises ConfigError."""
    path = out / "README.md"
    ours = not path.exists() or path.read_text(encoding="utf-8", errors="replace").startswith(HEADING)
    require(ours, "--out", out, f"a folder without a README.md, or with one that begins with {HEADING!r}")


# ---- verdicts


def judge(options: Options, runs: RunsOf, failed: dict[str, str], planned: dict[str, list[RunConfig]]) -> list[Record]:
    """With p corrected for the tests among these alone; `failed`: sweep → what went wrong with some of its runs;
    `planned`: sweep → all of its runs, more than `runs` has where some are damaged.
    """
    evidence = {claim.id: measure(claim, runs, failed) for claim in options.claims}
    adjusted = adjust({key: found.p for key, found in evidence.items() if found.p is not None})
    return [
        record(claim, evidence[claim.id], adjusted.get(claim.id), runs_for([claim], runs), options)
        | {"planned_runs": sum(len(planned.get(sweep.name, [])) for sweep in own_sweeps([claim]))}
        for claim in options.claims
    ]


def measure(claim: Claim, runs: RunsOf, failed: dict[str, str]) -> Evidence:
    problem = next((failed[sweep.name] for sweep in claim.sweeps if sweep.name in failed), None)
    try:
        if problem is not None:
            raise NoVerdictError(problem)
        found = claim.rule.measure(runs_for([claim], runs), np.random.default_rng(0))
        if not math.isfinite(found.measured.mean):
            raise NoVerdictError("what was measured is not a number")
        return found
    except NO_MEASURE as error:
        return Evidence(Estimate(math.nan, None, None, 0), problem=str(error))


def adjust(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's correction over all the tests of a source, those that were never run counted as without effect."""
    found: dict[str, float] = {}
    for source in dict.fromkeys(map(family, CLAIMS)):
        own = [claim.id for claim in CLAIMS if family(claim) == source and isinstance(claim.rule, TESTS)]
        found |= dict(zip(own, holm([p_values.get(key, 1.0) for key in own]), strict=True))
    return found


def record(claim: Claim, evidence: Evidence, p: float | None, runs: Runs, options: Options) -> Record:
    verdict, why = (Verdict.INCONCLUSIVE, evidence.problem) if evidence.problem else claim.rule.judge(evidence, p)
    measured = evidence.measured
    value, low, high = (seen(evidence, number) for number in (measured.mean, measured.low, measured.high))
    return {
        "id": claim.id,
        "source": claim.source,
        "statement": claim.statement,
        "published": claim.published,
        "measured": {
            "value": value,
            "low": low,
            "high": high,
            "unit": evidence.unit,
            "difference": evidence.difference,
            "detail": evidence.detail,
        },
        "n": measured.n,
        "runs": len(runs),
        "rule": claim.rule.words,
        "p": evidence.p,
        "p_holm": p,
        "verdict": verdict,
        "why": why,
        "note": claim.note,
        "command": f"bnexp reproduce {claim.id}",
        "sweeps": [command_of(sweep, options.seeds) for sweep in sweeps_of([claim])],
        "seconds": sum(run.summary["seconds"] for run in runs),
        "figure": claim.figure.name if claim.figure and runs else None,
        "commit": sorted({str(run.record["code"]["commit"]) for run in runs}),
        "machine": provenance(runs) if runs else "",
    }


def seen(evidence: Evidence, number: float | None) -> float | None:
    """As the reader sees it."""
    return None if number is None else evidence.scale * (number + evidence.shift)


# ---- what is written


def write(records: list[Record], options: Options, runs: RunsOf) -> list[Record]:
    """The records beside those of other claims that are there already, and these claims' figures. Returns the records
    as they can be read back.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    known = {entry["id"]: entry for entry in [*read_records(options.out), *records]}
    adjusted = adjust({key: entry["p"] for key, entry in known.items() if entry["p"] is not None})
    found = [corrected(known[claim.id], claim, adjusted) for claim in CLAIMS if claim.id in known]
    write_whole(options.out / RECORD, to_json(found))
    every = read_records(options.out)
    write_whole(options.out / "README.md", markdown(every, options.out))
    draw(options, runs)
    now = {entry["id"] for entry in records}
    return [entry for entry in every if entry["id"] in now]


def corrected(entry: Record, claim: Claim, adjusted: dict[str, float]) -> Record:
    """Other tests of its source are known: with p as it is among all of them, and the verdict for it."""
    rule, p, found = claim.rule, adjusted.get(claim.id), entry["measured"]
    if not isinstance(rule, TESTS) or p == entry["p_holm"] or found["value"] is None:
        return entry
    low, high = (None if found[key] is None else found[key] - rule.zero for key in ("low", "high"))
    verdict, why = rule.judge(Evidence(Estimate(found["value"] - rule.zero, low, high, entry["n"])), p)
    return entry | {"p_holm": p, "verdict": verdict, "why": why}


def read_records(out: Path) -> list[Record]:
    path = out / RECORD
    try:
        found: list[Record] = read_json(path) if path.exists() else []
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return found


def draw(options: Options, runs: RunsOf) -> None:
    """Figures of these claims; one that also shows other claims' runs is left as it is, if it is there."""
    folder = options.out / "figures"
    folder.mkdir(exist_ok=True)
    for figure in {claim.figure.name: claim.figure for claim in options.claims if claim.figure}.values():
        sharing = [claim for claim in CLAIMS if claim.figure and claim.figure.name == figure.name]
        own = [runs.get(sweep.name, []) for sweep in own_sweeps(sharing)]
        file = folder / f"{figure.name}.svg"
        if all(own) or not file.exists():
            found = [run for part in own for run in part]
            with suppress(NoVerdictError, ConfigError, DamagedFileError, FileNotFoundError):  # as its claims say
                figure.draw(found, [file])


def measured_words(entry: Record) -> str:
    found = entry["measured"]
    if found["value"] is None:
        return "–"
    value, low, high = (short(found[key], found) for key in ("value", "low", "high"))
    unit = {"": "", "%": " points" if found["difference"] else "%"}.get(found["unit"], f" {found['unit']}")
    return f"{value}{unit}" if found["low"] is None else f"{value}{unit} [{low}, {high}]"


def short(value: float | None, found: Record) -> str:
    """Accuracies to two places, anything else to four digits; null stands for infinite: never."""
    if value is None:
        return "never"
    sign = "+" if found["difference"] else ""
    if found["unit"] == "%":
        return f"{value:{sign}.2f}"
    return f"{value:{sign},.0f}" if abs(value) >= 1000 else f"{value:{sign}.4g}"


def tally(records: list[Record]) -> str:
    numbers = {verdict: sum(entry["verdict"] == verdict for entry in records) for verdict in Verdict}
    return f"{count(len(records), 'claim')}: " + ", ".join(f"{number} {verdict}" for verdict, number in numbers.items())


def n_words(entry: Record) -> str:
    """n, and where runs are missing how many of the planned ones it rests on."""
    there, planned = entry.get("runs", 0), entry.get("planned_runs", 0)
    return f"{entry['n']}" + (f" ({there} of {planned} runs)" if there < planned else "")


def row(entry: Record) -> list[str]:
    return [
        entry["id"],
        entry["statement"],
        entry["published"],
        measured_words(entry),
        n_words(entry),
        entry["verdict"],
    ]


HEADER = ["claim", "statement", "published", "measured", "n", "verdict"]


def markdown(records: list[Record], out: Path) -> str:
    """Published beside measured, a line a claim; then what did not come out as published."""
    lines = [HEADING, "", tally(records) + ".", "", *EXPLAINED, ""]
    for source, group in groupby(records, lambda entry: entry["source"].split(",")[0].split(";")[0]):
        own = list(group)
        lines += [f"## {source}", "", *markdown_table(HEADER, [row(entry) for entry in own], "---"), ""]
        figures = dict.fromkeys(entry["figure"] for entry in own if entry["figure"])
        lines += [f"![{name}](figures/{name}.svg)\n" for name in figures]
    lines += ["## Not as published", ""]
    lines += [remark(entry) for entry in records if entry["verdict"] != Verdict.REPRODUCED]
    lines += ["", *made_on(records), ""]
    lines += ["Speed: [performance.md](performance.md).", ""] if (out / "performance.md").exists() else []
    return "\n".join(lines)


EXPLAINED = [
    "Made by `bnexp reproduce` from `claims.json`, which has each claim's rule in full, its sweep's command, its p,",
    "seconds of training, commit and machine. A rule is fixed before its result is seen; where a look came first, the",
    "claim's note says so. By kind of claim, what was measured and what makes a verdict of it (n: seeds, of",
    "throughput: rounds):",
    "",
    "- a published single run: our mean and the 95% prediction interval of one run. Reproduced where the published",
    "  figure is in it, or within the tolerance of our mean. One such claim in twenty is contradicted by chance.",
    "- one arm better: the mean difference, seed by seed, with its 95% BCa interval, or what was measured, where the",
    "  other side is a number. Sign-flip permutation, Holm over the claims of a source, p < 0.05.",
    "- as good as: the same; the interval lies inside a margin stated beforehand.",
    "- a crossing: the mean step, where never counts as the last one, and from the evaluation before the earliest",
    "  seed's to the latest seed's. Reproduced where the published step, give or take an evaluation, lies between.",
    "- a rate: the share of seeds, with its Wilson interval.",
    "- an identity: the largest error in float64, at most 1e-10.",
]


def remark(entry: Record) -> str:
    parts = [entry["why"], entry["measured"]["detail"], entry["note"]]
    words = ". ".join(part.rstrip(".") for part in parts if part)
    return f"- **{entry['id']}** {entry['verdict']}: {marked_down(words)}."


def made_on(records: list[Record]) -> list[str]:
    return [f"- {marked_down(line)}" for line in dict.fromkeys(entry["machine"] for entry in records) if line]


# ---- what is said


def show(records: list[Record], options: Options) -> None:
    for entry in records:
        measured = f"measured {measured_words(entry)}, n = {n_words(entry)}" if entry["n"] else entry["why"]
        say(f"{entry['verdict']:<12}  {entry['id']}: published {entry['published']}, {measured}")
    say(f"{tally(records)}; {options.out / RECORD}, {options.out / 'README.md'}, {options.out / 'figures'}")


def show_list(claims: list[Claim], needed: dict[str, str]) -> None:
    """`needed`: sweep → the time it still takes."""
    rows = [
        [
            claim.id,
            claim.statement,
            ", ".join(f"{sweep.name} ({needed[sweep.name]})" for sweep in claim.sweeps) or "no runs",
        ]
        for claim in claims
    ]
    show_table("claims", ["claim", "statement", "sweep (still to run here, about)"], rows, numbers=False)
