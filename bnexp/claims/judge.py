"""`bnexp reproduce`: judge claims by their finished runs, and write claims.json, README.md and figures."""

import argparse
import math
import shlex
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import NoReturn

import numpy as np

from bnexp.claims.claim import Claim, ClaimSweep, Evidence, NoVerdictError, Runs, Verdict
from bnexp.claims.readme import HEADING, Record, markdown, measured_text, n_text, tally
from bnexp.claims.registry import CLAIMS, family, pick
from bnexp.claims.rules import Directional, Sooner
from bnexp.compare.planned import without_flaws
from bnexp.compare.report import provenance
from bnexp.compare.statistics import Estimate, holm
from bnexp.runs.config import ConfigError, RunConfig, require
from bnexp.runs.console import print_line, show_table
from bnexp.runs.directory import config_digest, to_json
from bnexp.runs.files import read_json, write_whole
from bnexp.runs.record import complete_runs
from bnexp.runs.tensors import DamagedFileError

SWEEPS = Path("results/sweeps/claims")
SEEDS = 10
RECORD = "claims.json"
TESTS = (Directional, Sooner)  # rules that have a p-value
NO_MEASURE = (NoVerdictError, ConfigError, DamagedFileError, OSError)  # as an arm without runs, or a missing checkpoint
RunsOf = dict[str, Runs]  # name of a sweep → its runs


# ---- what is asked for


@dataclass(frozen=True)
class Options:
    """The arguments of `bnexp reproduce`.

    `listed`: print the claims and run nothing. `seeds`: the number of seeds of an arm. `out`: the folder of the files.
    """

    claims: list[Claim]
    listed: bool
    seeds: int
    out: Path


class Parser(argparse.ArgumentParser):
    """A parser of arguments that raises ConfigError for invalid ones."""

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError with this message, where argparse would print its usage and exit."""
        raise ConfigError(f"reproduce: {message}")


def take_options(arguments: list[str]) -> Options:
    """Parse the arguments of `bnexp reproduce`. Raises ConfigError where they are invalid."""
    parser = Parser(prog="bnexp reproduce", description="Published claims, judged; without a name, all of them.")
    parser.add_argument("names", nargs="*", metavar="CLAIM", help="an id, or what ids begin with: udacity, wiki.sooner")
    parser.add_argument("--list", action="store_true", help="show them, and the time their runs still need here")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"seeds an arm, 0 to N-1 (default {SEEDS})")
    parser.add_argument("--out", type=Path, default=SWEEPS, help=f"for {RECORD}, README.md, figures/ ({SWEEPS})")
    values = parser.parse_intermixed_args(arguments)
    require(1 <= values.seeds <= 1000, "--seeds", values.seeds, "a whole number from 1 to 1000")
    return Options(pick(values.names), values.list, values.seeds, values.out)


def own_sweeps(claims: list[Claim]) -> list[ClaimSweep]:
    """Return the sweeps whose runs test these claims, each once."""
    return list({sweep.name: sweep for claim in claims for sweep in claim.sweeps}.values())


def sweeps_of(claims: list[Claim]) -> list[ClaimSweep]:
    """Return the claims' sweeps and those that they start from, each once and after the one it starts from."""
    return list({step.name: step for sweep in own_sweeps(claims) for step in with_start(sweep)}.values())


def with_start(sweep: ClaimSweep) -> list[ClaimSweep]:
    """Return the chain of sweeps that a sweep starts from, in the order in which they run, and the sweep itself."""
    return [sweep] if sweep.after is None else [*with_start(sweep.after), sweep]


def without(options: Options, impossible: dict[str, str]) -> Options:
    """Return the options without the claims that have an impossible sweep of their own.

    `impossible`: name of a sweep → why it cannot run. Raises ConfigError where no claim is left.
    """
    claims = [claim for claim in options.claims if impossible.keys().isdisjoint(sweep.name for sweep in claim.sweeps)]
    if not claims:
        raise ConfigError(next(iter(impossible.values())))
    return replace(options, claims=claims)


def sweep_arguments(sweep: ClaimSweep, seeds: int) -> list[str]:
    """Return the arguments of `bnexp train -m` for a sweep: its overrides, and its seeds from 0 on."""
    return [*sweep.overrides.split(), f"seed=range({min(seeds, sweep.most_seeds or seeds)})"]


def folder_of(sweep: ClaimSweep) -> Path:
    """Return the directory of a sweep's runs."""
    return SWEEPS / sweep.name


def command_of(sweep: ClaimSweep, seeds: int) -> str:
    """Return the shell command that trains a sweep's runs in its directory."""
    return shlex.join(["bnexp", "train", "-m", *sweep_arguments(sweep, seeds), f"hydra.sweep.dir={folder_of(sweep)}"])


def load_runs(claims: list[Claim], planned: dict[str, list[RunConfig]]) -> RunsOf:
    """Return the runs of the claims' own sweeps: name of the sweep → its planned runs that can be compared.

    Only runs that the installed versions made are returned; an error is printed for each that is damaged. planned: name
    of a sweep → its configurations, since its directory may hold other runs, as of more seeds.
    """
    runs: RunsOf = {}
    for sweep in own_sweeps(claims):
        complete = complete_runs(folder_of(sweep))
        digests = [config_digest(config) for config in planned.get(sweep.name, [])]
        runs[sweep.name] = without_flaws([complete[digest] for digest in digests if digest in complete])
    return runs


def runs_for(claims: list[Claim], runs: RunsOf) -> Runs:
    """Return the runs of the claims' own sweeps."""
    return [run for sweep in own_sweeps(claims) for run in runs[sweep.name]]


def check_readme(out: Path) -> None:
    """Raise ConfigError where `out` holds a README.md that `bnexp reproduce` did not write and would replace."""
    path = out / "README.md"
    ours = not path.exists() or path.read_text(encoding="utf-8", errors="replace").startswith(HEADING)
    require(ours, "--out", out, f"a folder without a README.md, or with one that begins with {HEADING!r}")


# ---- verdicts


def judge(options: Options, runs: RunsOf, failed: dict[str, str], planned: dict[str, list[RunConfig]]) -> list[Record]:
    """Return the record of each claim, for claims.json.

    In Holm's correction, the source's tests that are not among these claims count as p = 1. `failed`: name of a sweep →
    what went wrong with some of its runs. `planned`: name of a sweep → the configurations of all its runs; `runs` has
    fewer where some are missing or damaged.
    """
    evidence = {claim.id: measure(claim, runs, failed) for claim in options.claims}
    adjusted = adjust({key: measured.p for key, measured in evidence.items() if measured.p is not None})
    return [
        record(claim, evidence[claim.id], adjusted.get(claim.id), runs_for([claim], runs), options)
        | {"planned_runs": sum(len(planned.get(sweep.name, [])) for sweep in own_sweeps([claim]))}
        for claim in options.claims
    ]


def measure(claim: Claim, runs: RunsOf, failed: dict[str, str]) -> Evidence:
    """Return the evidence for a claim: NaN, with the reason as its `problem`, where it can't be measured.

    That is where a sweep of the claim failed, the mean is not finite, or one of the errors NO_MEASURE was raised.
    """
    problem = next((failed[sweep.name] for sweep in claim.sweeps if sweep.name in failed), None)
    try:
        if problem is not None:
            raise NoVerdictError(problem)
        evidence = claim.rule.measure(runs_for([claim], runs), np.random.default_rng(0))
        if not math.isfinite(evidence.measured.mean):
            raise NoVerdictError("what was measured is not a number")
        return evidence
    except NO_MEASURE as error:
        return Evidence(Estimate(math.nan, None, None, 0), problem=str(error))


def adjust(p_values: dict[str, float]) -> dict[str, float]:
    """Return id of a claim → p-value after Holm's correction over all tests of its source, for every claim with a test.

    A test without a p-value counts as p = 1, so that a claim alone is judged as strictly as among all.
    """
    adjusted: dict[str, float] = {}
    for source in dict.fromkeys(map(family, CLAIMS)):
        ids = [claim.id for claim in CLAIMS if family(claim) == source and isinstance(claim.rule, TESTS)]
        adjusted |= holm({key: p_values.get(key, 1.0) for key in ids})
    return adjusted


def record(claim: Claim, evidence: Evidence, p: float | None, runs: Runs, options: Options) -> Record:
    """Return a claim's entry in claims.json, without `planned_runs`; `p` is its p-value after Holm's correction."""
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
        "rule": claim.rule.description,
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
    """Return a measured number as a reader is shown it, in the unit of the evidence; None stays None."""
    return None if number is None else evidence.scale * (number + evidence.shift)


# ---- what is written


def write(records: list[Record], options: Options, runs: RunsOf) -> list[Record]:
    """Write claims.json, README.md and these claims' figures; keep the records of the other CLAIMS in claims.json.

    p-values are corrected anew, with all of these records (`adjust`). Returns those of these claims, as read from the
    new claims.json. Raises ConfigError where the earlier claims.json can't be read as JSON.
    """
    options.out.mkdir(parents=True, exist_ok=True)
    known = {entry["id"]: entry for entry in [*read_records(options.out), *records]}
    adjusted = adjust({key: entry["p"] for key, entry in known.items() if entry["p"] is not None})
    merged = [corrected(known[claim.id], claim, adjusted) for claim in CLAIMS if claim.id in known]
    write_whole(options.out / RECORD, to_json(merged))
    all_records = read_records(options.out)
    write_whole(options.out / "README.md", markdown(all_records, options.out))
    draw(options, runs)
    ids = {entry["id"] for entry in records}
    return [entry for entry in all_records if entry["id"] in ids]


def corrected(entry: Record, claim: Claim, adjusted: dict[str, float]) -> Record:
    """Return a record with the corrected p-value of `adjusted`, and the verdict that follows from it.

    A record whose rule is no test, that measured nothing, or whose p-value is the same, is returned as it is.
    """
    rule, p, measured = claim.rule, adjusted.get(claim.id), entry["measured"]
    if not isinstance(rule, TESTS) or p == entry["p_holm"] or measured["value"] is None:
        return entry
    low, high = (None if measured[key] is None else measured[key] - rule.zero for key in ("low", "high"))
    verdict, why = rule.judge(Evidence(Estimate(measured["value"] - rule.zero, low, high, entry["n"])), p)
    return entry | {"p_holm": p, "verdict": verdict, "why": why}


def read_records(out: Path) -> list[Record]:
    """Return the records in claims.json, or [] where there is no such file.

    Raises ConfigError where it can't be read as JSON.
    """
    path = out / RECORD
    try:
        records: list[Record] = read_json(path) if path.exists() else []
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    return records


def draw(options: Options, runs: RunsOf) -> None:
    """Draw the figures of these claims, except those that can't be drawn from their runs.

    An existing file is left as it is where a sweep that the figure shows has no runs here.
    """
    folder = options.out / "figures"
    folder.mkdir(exist_ok=True)
    for figure in {claim.figure.name: claim.figure for claim in options.claims if claim.figure}.values():
        sharing = [claim for claim in CLAIMS if claim.figure and claim.figure.name == figure.name]
        by_sweep = [runs.get(sweep.name, []) for sweep in own_sweeps(sharing)]
        file = folder / f"{figure.name}.svg"
        if all(by_sweep) or not file.exists():
            with suppress(NoVerdictError, ConfigError, DamagedFileError, FileNotFoundError):  # the records say why
                figure.draw(list(chain.from_iterable(by_sweep)), [file])


# ---- what is printed


def show(records: list[Record], options: Options) -> None:
    """Print the verdict on each claim, their tally, and the paths of the files."""
    for entry in records:
        measured = f"measured {measured_text(entry)}, n = {n_text(entry)}" if entry["n"] else entry["why"]
        print_line(f"{entry['verdict']:<12}  {entry['id']}: published {entry['published']}, {measured}")
    print_line(f"{tally(records)}; {options.out / RECORD}, {options.out / 'README.md'}, {options.out / 'figures'}")


def show_list(claims: list[Claim], needed: dict[str, str]) -> None:
    """Print a table of the claims; `needed`: name of a sweep → the time that its remaining runs take."""
    rows = [
        [
            claim.id,
            claim.statement,
            ", ".join(f"{sweep.name} ({needed[sweep.name]})" for sweep in claim.sweeps) or "no runs",
        ]
        for claim in claims
    ]
    show_table("claims", ["claim", "statement", "sweep (still to run here, about)"], rows, numbers=False)
