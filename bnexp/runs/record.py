"""What runs have left, read back: records, curves and summaries."""

import csv
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bnexp.runs.config import RunConfig
from bnexp.runs.console import print_error
from bnexp.runs.directory import METRICS, RUN, SUMMARY, SWEEP, TIMING, digest_of, version, write_summary
from bnexp.runs.files import read_json
from bnexp.runs.parse import located, recorded

TAIL = 8192  # bytes at the end of a table, in which its last rows are


def read_record(directory: Path) -> dict[str, Any] | None:
    """None where there is none that can be read."""
    try:
        record: dict[str, Any] = read_json(directory / RUN)
    except (FileNotFoundError, ValueError):
        return None
    return record if fits(record, RECORD) else None


@dataclass(frozen=True)
class RunRecord:
    """A run as its directory tells it."""

    directory: Path
    record: dict[str, Any]
    summary: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.record["config"]
        return config

    def located(self) -> RunConfig:
        """Its configuration, with its folders where they are. Raises ConfigError."""
        return locate(recorded(self.config), self.record.get("paths"), self.directory)

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @cached_property
    def digest(self) -> str:
        return digest_of(self.config)

    @property
    def job(self) -> int:
        return int(self.record["job"])

    @property
    def complete(self) -> bool:
        return self.summary["status"] in COMPLETE

    def flaw(self) -> str | None:
        """Why it can't be compared, or None: it isn't complete, or its tables don't end as its summary says."""
        if not self.complete:
            return str(self.summary["status"])
        try:
            end = self.summary["steps"]
            curve = [row["accuracy"] for row in self.validation.values()]
            test = self.summary["test"]
            tests = (test["accuracy"], self.summary.get("test_recalibrated", test)["accuracy"])
            numbers = (*tests, self.summary["steps_per_second"], self.summary["seconds"])
            whole = (
                max(self.validation) == max(self.seconds) == end and curve[-1] == self.summary["validation"]["final"]
            )
            whole = whole and all(isinstance(number, int | float) for number in numbers)
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            whole = False
        return None if whole else f"its {METRICS}, {TIMING} or {SUMMARY} is not whole"

    @property
    def same_versions(self) -> bool:
        packages: dict[str, str] = self.record["packages"]
        return packages.items() >= reproducibility_versions().items()

    @cached_property
    def validation(self) -> dict[int, dict[str, float]]:
        """Step → columns of metrics.csv, at each evaluation."""
        return {int(row["step"]): row for row in read_csv(self.directory / METRICS, split="validation")}

    @cached_property
    def seconds(self) -> dict[int, float]:
        """Step → seconds of training until then."""
        return {int(row["step"]): row["seconds"] for row in read_csv(self.directory / TIMING)}


def locate(config: RunConfig, paths: object, directory: Path, moved: dict[str, str] | None = None) -> RunConfig:
    """A recorded run with its folders where its record says they were (`paths`), wherever one stands. One that is gone
    is looked for beside the run's directory, where both were moved together. `moved`: places by their keys that are
    known better. A record without paths has them as they were typed.
    """
    places = {str(key): str(path) for key, path in paths.items()} if isinstance(paths, dict) else {}
    before, now = moved_part(Path(places.pop("directory", "")), directory.absolute())
    for key, path in places.items():
        beside = now / os.path.relpath(path, before)
        places[key] = path if os.path.exists(path) or not beside.exists() else str(beside)
    return located(config, places | (moved or {}))


def moved_part(before: Path, now: Path) -> tuple[Path, Path]:
    """Where two places of a directory differ: without the names that both end in."""
    while before.name and before.name == now.name:
        before, now = before.parent, now.parent
    return before, now


def read_csv(path: Path, **where: str) -> Iterator[dict[str, float]]:
    """Rows as numbers; a column of words is for choosing rows, say split="test"."""
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if all(row[key] == value for key, value in where.items()):
                yield {key: float(value) for key, value in row.items() if key not in ("split",) and value}


def opened_at(directory: Path) -> int | None:
    """When a run was created or reopened last, in nanoseconds of the file system's clock; None where there is none."""
    with suppress(OSError):
        return (directory / RUN).stat().st_mtime_ns
    return None


def last_evaluation(directory: Path) -> tuple[int, float] | None:
    """Step and validation accuracy of the latest row of metrics.csv; None where there is none that can be read."""
    with suppress(OSError, ValueError, IndexError), (directory / METRICS).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        rows = [line.split(",") for line in file.read().decode(errors="replace").splitlines(keepends=True)]
        whole = [row for row in rows if row[1:2] == ["validation"] and row[-1].endswith("\n")]
        return int(whole[-1][0]), float(whole[-1][3])
    return None


def read_summary(directory: Path) -> dict[str, Any] | None:
    """A run's summary.json; None where there is none that can be read."""
    with suppress(OSError, ValueError):
        summary: dict[str, Any] = read_json(directory / SUMMARY)
        return summary if fits(summary, {"status": str}) else None
    return None


COMPLETE = ("finished", "diverged")


def complete_runs(sweep: Path) -> dict[str, RunRecord]:
    """Of a sweep's directory the complete runs that these versions of bnexp and torch made, by their configuration's
    digest.
    """
    return {run.digest: run for run in find_runs([sweep]) if run.complete and run.same_versions}


def complete_run(directory: Path) -> RunRecord | None:
    """The directory's own run, where it is over."""
    with suppress(OSError, ValueError):
        run = read_run(directory)
        return run if run.complete else None
    return None


def reproducibility_versions() -> dict[str, str]:
    """Of the packages whose versions a curve depends on."""
    return {name: version(name) for name in ("bnexp", "torch")}


def find_runs(roots: list[Path]) -> list[RunRecord]:
    """Every run below the given directories: in their order, within one in the order of its sweep. A run that was cut
    off without a word is `unfinished`; one whose record cannot be read is named and left out.
    """
    runs: dict[Path, RunRecord] = {}
    for root in roots:
        found = list[RunRecord]()
        for place in run_places(root):
            try:
                found.append(read_run(place))
            except (ValueError, OSError):
                print_error(f"{place / RUN} cannot be read: left out")
        orders = {folder: order_of_sweep(folder) for folder in {run.directory.parent for run in found}}
        found.sort(key=lambda run: (orders[run.directory.parent].get(run.digest, run.job), run.record["created"]))
        runs.update((run.directory.resolve(), run) for run in found if run.directory.resolve() not in runs)
    return list(runs.values())


def run_places(root: Path) -> list[Path]:
    """Every directory below that a run has written to, also where its record cannot be read."""
    return sorted({path.parent for name in (RUN, METRICS, SUMMARY) for path in root.rglob(name)})


def order_of_sweep(directory: Path) -> dict[str, int]:
    """The place of each run, by its digest, in the sweep as it was typed last; runs that were there before it grew have
    their numbers from then.
    """
    try:
        jobs = read_json(directory / SWEEP)["jobs"]
        return {digest_of(entry["config"]): number for number, entry in enumerate(jobs)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


ANY = object


RECORD: dict[str, Any] = {"created": str, "job": int, "overrides": list, "config_sha256": str, "notes": list}


RECORD |= {"machine": str, "device": str, "threads": int, "code": {"commit": ANY, "dirty": ANY}}
RECORD["packages"] = {"bnexp": str, "torch": str}
RECORD["config"] = {group: {"name": str} for group in ("dataset", "arch", "act", "norm", "init", "optim")}
RECORD["config"] |= {"seed": int, "steps": int, "eval": dict, "checkpoint": dict}


def read_run(directory: Path) -> RunRecord:
    """Raises ValueError or OSError where its record is none."""
    record = read_json(directory / RUN)
    if not fits(record, RECORD):
        raise ValueError(f"{directory / RUN} is not a run's record")
    summary = read_summary(directory)  # None of one that was killed before it was written
    return RunRecord(directory, record, summary or {"status": "unfinished"})


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, or a table that has these keys, each with what fits."""
    if not isinstance(kind, dict):
        return isinstance(value, kind)
    return isinstance(value, dict) and all(key in value and fits(value[key], part) for key, part in kind.items())


def write_failure(directory: Path, error: str) -> None:
    """But of a run that is over: that one stays what it is."""
    if complete_run(directory) is None:
        write_summary(directory, {"status": "failed", "error": error})
