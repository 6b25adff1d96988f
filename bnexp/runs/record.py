"""Read the files that runs and sweeps have written: records, metrics, times and summaries."""

import csv
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from bnexp.runs.config import RunConfig
from bnexp.runs.console import print_error
from bnexp.runs.directory import METRICS, RUN, SUMMARY, SWEEP, TIMING, digest_of, version, write_summary
from bnexp.runs.files import is_name, read_json
from bnexp.runs.parse import located, recorded

TAIL = 8192  # bytes at the end of a CSV file that contain its last rows


def read_record(directory: Path) -> dict[str, Any] | None:
    """Return the content of run.json; None if it is missing or no run's record. Raises OSError if it can't be read."""
    try:
        record: dict[str, Any] = read_json(directory / RUN)
    except (FileNotFoundError, ValueError):
        return None
    return record if fits(record, RECORD) else None


@dataclass(frozen=True)
class RunRecord:
    """A run as read from its directory.

    record: the content of run.json. summary: the content of summary.json, or {"status": "unfinished"}. metrics.csv and
    timing.csv are read when they are needed.
    """

    directory: Path
    record: dict[str, Any]
    summary: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        """The recorded configuration as nested dictionaries."""
        config: dict[str, Any] = self.record["config"]
        return config

    def located(self) -> RunConfig:
        """Return the typed configuration, with folders where `locate` finds them. Raises ConfigError if invalid."""
        return locate(recorded(self.config), self.record.get("paths"), self.directory)

    @property
    def seed(self) -> int:
        """The seed of the configuration."""
        return int(self.config["seed"])

    @cached_property
    def digest(self) -> str:
        """The digest of the configuration, which identifies the run."""
        return digest_of(self.config)

    @property
    def job(self) -> int:
        """The number of the run in its sweep."""
        return int(self.record["job"])

    @property
    def complete(self) -> bool:
        """Whether the run has finished or diverged, so that it has a result."""
        return self.summary["status"] in COMPLETE

    def flaw(self) -> str | None:
        """Return why the run can't be compared, else None.

        The reason is its status if it is incomplete, or a message if metrics.csv, timing.csv or summary.json is damaged
        or they don't agree.
        """
        if not self.complete:
            return str(self.summary["status"])
        try:
            test, final = self.summary["test"], self.summary["validation"]["final"]
            tests = (test["accuracy"], self.summary.get("test_recalibrated", test)["accuracy"])
            numbers = (*tests, self.summary["steps_per_second"], self.summary["seconds"])
            last = list(self.validation.values())[-1]["accuracy"]
            same_end = max(self.validation) == max(self.seconds) == self.summary["steps"]
            whole = same_end and last == final and all(isinstance(number, int | float) for number in numbers)
        except (OSError, ValueError, LookupError, TypeError, csv.Error):
            whole = False
        return None if whole else f"its {METRICS}, {TIMING} or {SUMMARY} is not whole"

    @property
    def same_versions(self) -> bool:
        """Whether the run was made by the installed versions of bnexp and torch."""
        packages: dict[str, str] = self.record["packages"]
        return packages.items() >= reproducibility_versions().items()

    @cached_property
    def validation(self) -> dict[int, dict[str, float]]:
        """The validation rows of metrics.csv: step → column → value.

        Raises OSError where it can't be read. Where it is damaged, this can raise ValueError, LookupError, TypeError or
        csv.Error.
        """
        return {int(row["step"]): row for row in read_csv(self.directory / METRICS, split="validation")}

    @cached_property
    def seconds(self) -> dict[int, float]:
        """The seconds of training until each evaluation, from timing.csv: step → seconds. Raises as `validation`."""
        return {int(row["step"]): row["seconds"] for row in read_csv(self.directory / TIMING)}


def locate(config: RunConfig, paths: object, directory: Path, moved: dict[str, str] | None = None) -> RunConfig:
    """Return a recorded configuration with the paths at which the folders that the run reads are now.

    paths: the absolute paths in the record; without them, paths stay as they were typed. directory: the present
    directory of the run or sweep. A missing folder is looked up where it would be if it was moved together with this
    directory. moved: new paths by key, which take precedence.
    """
    present = {str(key): str(path) for key, path in paths.items()} if isinstance(paths, dict) else {}
    before, now = moved_part(Path(present.pop("directory", "")), directory.absolute())
    for key, path in present.items():
        new = now / os.path.relpath(path, before)
        present[key] = path if os.path.exists(path) or not new.exists() else str(new)
    return located(config, present | (moved or {}))


def moved_part(before: Path, now: Path) -> tuple[Path, Path]:
    """Remove the last names that a directory's earlier and present path have in common; return what remains of both.

    So /a/results/x and /b/results/x give /a and /b.
    """
    while before.name and before.name == now.name:
        before, now = before.parent, now.parent
    return before, now


def read_csv(path: Path, **where: str) -> Iterator[dict[str, float]]:
    """Yield the rows of a CSV file as column → number, without empty cells and the column "split".

    where: values that a row must have to be yielded, as split="test".
    """
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if all(row[key] == value for key, value in where.items()):
                yield {key: float(value) for key, value in row.items() if key not in ("split",) and value}


def opened_at(directory: Path) -> int | None:
    """Return the modification time of run.json in nanoseconds; None where it can't be read.

    It changes when a run is created or reopened, or its recorded paths change.
    """
    with suppress(OSError):
        return (directory / RUN).stat().st_mtime_ns
    return None


def last_evaluation(directory: Path) -> tuple[int, float] | None:
    """Return step and accuracy of the last complete validation row of metrics.csv; None if none can be read."""
    with suppress(OSError, ValueError, IndexError), (directory / METRICS).open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        rows = [line.split(",") for line in file.read().decode(errors="replace").splitlines(keepends=True)]
        whole = [row for row in rows if row[1:2] == ["validation"] and row[-1].endswith("\n")]
        return int(whole[-1][0]), float(whole[-1][3])
    return None


def read_summary(directory: Path) -> dict[str, Any] | None:
    """Return the content of summary.json; None where it is missing or damaged."""
    return read_fitting(directory / SUMMARY, {"status": str})


COMPLETE = ("finished", "diverged")


def complete_runs(sweep: Path) -> dict[str, RunRecord]:
    """Return the complete runs of a sweep by their digests, without those by other versions of bnexp or torch."""
    return {run.digest: run for run in find_runs([sweep]) if run.complete and run.same_versions}


def complete_run(directory: Path) -> RunRecord | None:
    """Return the run in a directory if it is complete; None where it isn't or can't be read."""
    with suppress(OSError, ValueError):
        run = read_run(directory)
        return run if run.complete else None
    return None


def reproducibility_versions() -> dict[str, str]:
    """Return the installed versions of bnexp and torch, on which metrics depend.

    A run by other versions is neither resumed nor reused.
    """
    return {name: version(name) for name in ("bnexp", "torch")}


def find_runs(roots: list[Path]) -> list[RunRecord]:
    """Return the runs in and below some directories, each once: in the order of `roots`, then of their sweeps.

    A run without a summary has the status "unfinished". A run whose record can't be read is left out, with a printed
    error.
    """
    runs: dict[Path, RunRecord] = {}
    for directory in (directory for root in roots for directory in run_directories(root)):
        try:
            runs.setdefault(directory.resolve(), read_run(directory))
        except (ValueError, OSError):
            print_error(f"{directory / RUN} cannot be read: left out")
    return sorted(runs.values(), key=sweep_order(roots))


def run_directories(root: Path) -> list[Path]:
    """Return all directories in and below `root` that a run has written to, also those without a readable record."""
    return sorted({path.parent for name in (RUN, METRICS, SUMMARY) for path in root.rglob(name)})


def sweep_order(roots: list[Path]) -> Callable[[RunRecord], tuple[int, int, str]]:
    """Return a sort key for the runs in and below some directories: by root, position in the sweep, and time.

    The position is that in sweep.json, if it is there: the number in a run's own record may be outdated, since values
    can be added to a sweep. The time is that of the run's creation.
    """

    @cache
    def positions(sweep: Path) -> dict[str, int]:
        return {digest: number for number, digest in enumerate(read_jobs(sweep) or {})}

    def key(run: RunRecord) -> tuple[int, int, str]:
        above = (number for number, root in enumerate(roots) if run.directory.is_relative_to(root))
        position = positions(run.directory.parent).get(run.digest, run.job)
        return next(above, len(roots)), position, run.record["created"]

    return key


ANY = object


RECORD: dict[str, Any] = {"created": str, "job": int, "overrides": list, "config_sha256": str, "notes": list}


RECORD |= {"machine": str, "device": str, "threads": int, "code": {"commit": ANY, "dirty": ANY}}
RECORD["packages"] = {"bnexp": str, "torch": str}
RECORD["config"] = {group: {"name": str} for group in ("dataset", "arch", "act", "norm", "init", "optim")}
RECORD["config"] |= {"seed": int, "steps": int, "eval": dict, "checkpoint": dict}
JOB = {"config": RECORD["config"], "words": list, "overrides": list}  # of sweep.json


# ---- sweep.json, which names all runs of a sweep, also those that never started


def sweep_directories(roots: list[Path]) -> list[Path]:
    """Return all directories in and below `roots` that have a sweep.json, each once."""
    paths = dict[Path, Path]()
    for path in (path for root in roots for path in sorted(root.rglob(SWEEP))):
        paths.setdefault(path.resolve(), path.parent)
    return list(paths.values())


def read_jobs(sweep: Path) -> dict[str, dict[str, Any]] | None:
    """Return the jobs in sweep.json by the digests of their runs, in its order; None where it is missing or damaged.

    An entry has the keys "config", "words" (all of the run's overrides) and "overrides" (those that not every run of
    the sweep has).
    """
    record = read_fitting(sweep / SWEEP, {"jobs": list})
    if record is None or not all(fits(entry, JOB) for entry in record["jobs"]):
        return None
    return {digest_of(entry["config"]): entry for entry in record["jobs"]}


def comparison_of(sweep: Path) -> dict[str, str | None] | None:
    """Return {"by": KEY} if a sweep is to be compared when it is finished. The values of KEY are the arms.

    KEY is None for the default: norm if it differs, or else the first key that does, except keys that make no arms,
    as the seed, and those that follow a choice. Return None where the sweep isn't to be compared, as one of
    `bnexp train -m`, or where its sweep.json is missing or can't be read.
    """
    record = read_fitting(sweep / SWEEP, {"compare": {"by": str | None}})
    return {"by": record["compare"]["by"]} if record else None


def run_name(own_overrides: list[str], number: int) -> str:
    """Return the name of a run's folder: its own overrides, or its number if they can't be a directory's name."""
    name = ",".join(sorted(own_overrides))
    return name if is_name(name) else str(number)


# ---- one file


def read_run(directory: Path) -> RunRecord:
    """Read the run in a directory. Raises ValueError if run.json is missing or damaged, OSError if it is unreadable."""
    record = read_record(directory)
    if record is None:
        raise ValueError(f"{directory / RUN} is not a run's record")
    summary = read_summary(directory)  # None of a run whose process was killed
    return RunRecord(directory, record, summary or {"status": "unfinished"})


def read_fitting(path: Path, kind: dict[str, Any]) -> dict[str, Any] | None:
    """Return the content of a JSON file; None where it can't be read or does not fit `kind` (see `fits`)."""
    with suppress(OSError, ValueError):
        content: dict[str, Any] = read_json(path)
        return content if fits(content, kind) else None
    return None


def fits(value: Any, kind: Any) -> bool:
    """Return whether a value is an instance of the type `kind`.

    If `kind` is a dictionary, the value has to be one with at least the same keys, whose values fit.
    """
    if not isinstance(kind, dict):
        return isinstance(value, kind)
    return isinstance(value, dict) and all(key in value and fits(value[key], part) for key, part in kind.items())


def write_failure(directory: Path, error: str) -> None:
    """Write a summary with the status "failed" and the error, unless the run is complete."""
    if complete_run(directory) is None:
        write_summary(directory, {"status": "failed", "error": error})
