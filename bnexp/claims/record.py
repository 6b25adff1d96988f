"""The record of claims, claims.json: what each block of seeds measured, and the verdicts that follow from it.

It keeps the value of every seed, so that all verdicts can be computed again from it, without the runs.
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bnexp.claims.claim import BLOCKS, TUNING, Claim, ClaimSweep, Finding, NoVerdictError, Reading, Runs, Samples
from bnexp.claims.judge import Judged, family, is_identity, judge
from bnexp.compare.report import provenance
from bnexp.runs.config import ConfigError
from bnexp.runs.directory import to_json
from bnexp.runs.files import read_json, write_whole
from bnexp.runs.tensors import DamagedFileError

Record = dict[str, Any]  # a claim's entry in claims.json
RECORD = "claims.json"
SWEEPS = Path("results/sweeps/claims")
NO_MEASURE = (NoVerdictError, ConfigError, DamagedFileError, OSError)  # as an arm without runs, or a missing checkpoint


# ---- the sweeps of claims


def own_sweeps(claims: list[Claim]) -> list[ClaimSweep]:
    """Return the sweeps whose runs test these claims, each once."""
    return list({sweep.name: sweep for claim in claims for sweep in claim.sweeps}.values())


def sweeps_of(claims: list[Claim]) -> list[ClaimSweep]:
    """Return the claims' sweeps and those that they start from, each once and after the one it starts from."""
    return list({step.name: step for sweep in own_sweeps(claims) for step in with_start(sweep)}.values())


def with_start(sweep: ClaimSweep) -> list[ClaimSweep]:
    """Return the chain of sweeps that a sweep starts from, in the order in which they run, and the sweep itself."""
    return [sweep] if sweep.after is None else [*with_start(sweep.after), sweep]


def seeds_of(sweep: ClaimSweep, block: int, seeds: int | None) -> range:
    """Return the seeds of a sweep's block: `seeds` of them, or, where that is None, as many as the sweep says."""
    return range(block, block + (seeds or sweep.seeds))


def sweep_arguments(sweep: ClaimSweep, blocks: list[int], seeds: int | None) -> list[str]:
    """Return the arguments of `bnexp train -m` for a sweep: its overrides, and the seeds of its blocks."""
    ranges = [seeds_of(sweep, block, seeds) for block in blocks] + ([TUNING] if sweep.tuned else [])
    if len(ranges) > 1:
        return [*sweep.overrides.split(), f"seed={','.join(str(seed) for numbers in ranges for seed in numbers)}"]
    first = f"{ranges[0].start}," if ranges[0].start else ""
    return [*sweep.overrides.split(), f"seed=range({first}{ranges[0].stop})"]


def folder_of(sweep: ClaimSweep) -> Path:
    """Return the directory of a sweep's runs."""
    return SWEEPS / sweep.name


def command_of(sweep: ClaimSweep) -> str:
    """Return the shell command that trains the runs of a sweep, of both blocks, in its directory."""
    words = [*sweep_arguments(sweep, list(BLOCKS), None), f"hydra.sweep.dir={folder_of(sweep)}"]
    return shlex.join(["bnexp", "train", "-m", *words])


# ---- what a block of seeds measured


@dataclass(frozen=True)
class Measured:
    """What was measured of a claim in a block.

    `samples` and `remarks`: name of a rule → what it read. `problem` says why nothing could be measured, else "".
    `runs` of `planned_runs` were there; `seconds` of training are theirs.
    """

    samples: dict[str, Samples] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    problem: str = ""
    runs: int = 0
    planned_runs: int = 0
    seconds: float = 0.0
    commit: list[str] = field(default_factory=list)
    machine: str = ""


def measure(claim: Claim, runs: Runs, planned: int, failed: dict[str, str]) -> Measured:
    """Return what a claim's rules read off its runs of a block, those of the TUNING seeds among them.

    `failed`: name of a sweep → what went wrong with it. `planned` is the number of runs that there should be.
    """
    readings: dict[str, Reading] = {}
    problem = next((failed[sweep.name] for sweep in claim.sweeps if sweep.name in failed), "")
    try:
        readings = {} if problem else {name: rule.read(runs) for name, rule in claim.all_rules.items()}
    except NO_MEASURE as error:
        problem = str(error)
    return Measured(
        samples={name: reading.samples for name, reading in readings.items()},
        remarks={name: reading.remark for name, reading in readings.items() if reading.remark},
        problem=problem,
        runs=len(runs),
        planned_runs=planned,
        seconds=sum(run.summary["seconds"] for run in runs),
        commit=sorted({str(run.record["code"]["commit"]) for run in runs}),
        machine=provenance(runs) if runs else "",
    )


def parse_block(stored: Record) -> Measured:
    """Return what claims.json holds of a block. Its seeds are texts there, and infinite times null."""
    samples = {
        rule: {
            role: {int(seed): math.inf if value is None else value for seed, value in values.items()}
            for role, values in roles.items()
        }
        for rule, roles in stored["samples"].items()
    }
    known = {each.name for each in fields(Measured)}
    return Measured(**{key: value for key, value in stored.items() if key in known} | {"samples": samples})


# ---- the record


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


def update(out: Path, claims: list[Claim], new: Mapping[str, Mapping[str, Measured]]) -> list[Record]:
    """Judge all `claims` of which claims.json has or `new` brings a block, write them, and return their records.

    `new`: id of a claim → block → what it measured now, in place of what claims.json has of it. All are judged anew,
    since Holm's correction runs over a family. Raises ConfigError where claims.json can't be read.
    """
    kept = {
        entry["id"]: {block: parse_block(stored) for block, stored in entry["blocks"].items()}
        for entry in read_records(out)
    }
    measured = {
        claim.id: dict(sorted({**kept.get(claim.id, {}), **new.get(claim.id, {})}.items()))
        for claim in claims
        if claim.id in kept or claim.id in new
    }
    judged = judge(
        claims,
        {key: {b: each.samples for b, each in blocks.items() if not each.problem} for key, blocks in measured.items()},
        {key: {b: each.problem for b, each in blocks.items() if each.problem} for key, blocks in measured.items()},
    )
    records = [make_record(claim, judged[claim.id], measured[claim.id]) for claim in claims if claim.id in measured]
    write_whole(out / RECORD, to_json(records))
    return read_records(out)


def make_record(claim: Claim, judged: Judged, measured: Mapping[str, Measured]) -> Record:
    """Return a claim's entry in claims.json."""
    has_runs = any(block.runs for block in measured.values())
    return {
        "id": claim.id,
        "kind": "identity" if is_identity(claim) else "fact",
        "source": claim.source,
        "family": family(claim),
        "statement": claim.statement,
        "published": claim.published,
        "verdict": judged.verdict,
        "why": judged.why,
        "results": [
            result(name, block, finding, judged.p_holm.get(block))
            for block, findings in judged.findings.items()
            for name, finding in findings.items()
        ],
        "detectable": judged.detectable,
        "rules": {name: rule.description for name, rule in claim.all_rules.items()},
        "aside": list(claim.aside),
        "note": claim.note,
        "changed": claim.changed,
        "replaces": list(claim.replaces),
        "command": f"bnexp reproduce {claim.id}",
        "sweeps": [command_of(sweep) for sweep in sweeps_of([claim])],
        "figure": claim.figure.name if claim.figure and has_runs else None,
        "blocks": {block: asdict(each) for block, each in measured.items()},
    }


def result(name: str, block: str, finding: Finding, p_holm: float | None) -> Record:
    """Return what a rule found in a block, for claims.json; numbers are in `unit`."""
    measured = finding.measured
    return {
        "rule": name,
        "block": block,
        "verdict": finding.verdict,
        "why": finding.why,
        "n": measured.n,
        "value": measured.mean,
        "low": measured.low,
        "high": measured.high,
        "unit": finding.unit,
        "difference": finding.difference,
        "p": finding.p,
        "p_holm": None if finding.p is None else p_holm,
        "theirs": asdict(finding.theirs) if finding.theirs else None,
        "detail": finding.detail,
    }
