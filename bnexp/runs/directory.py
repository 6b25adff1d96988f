"""The run directory: this module alone knows its files' names. It writes them and reads them back."""

import csv
import hashlib
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from bnexp.runs.config import RunConfig, located, paths_of, recorded
from bnexp.runs.console import print_error
from bnexp.runs.files import clear_parts, read_json, remove, write_whole

SCHEMA = 2  # of run.json; of 1 `config_sha256` is of the whole configuration, defaults included
SWEEP = "sweep.json"
RUN, METRICS, TIMING, SUMMARY, CHECKPOINT = (
    "run.json",
    "metrics.csv",
    "timing.csv",
    "summary.json",
    "checkpoint.safetensors",
)
RESUME = "resume-*.safetensors"
FILES = (METRICS, TIMING, SUMMARY, CHECKPOINT, f"{CHECKPOINT}.sha256")
EVENTS = "events.out.tfevents.*"
KEPT = "checkpoint-*.safetensors"
TAIL = 8192  # bytes at the end of a table, in which its last rows are
PACKAGES = ("bnexp", "torch", "torchvision", "numpy", "hydra-core", "tensorboard")


version = cache(metadata.version)  # of a package; each look at its files takes 1 ms


@dataclass(frozen=True)
class Compilation:
    """Whether a run's step is compiled, as it is planned. `problem`: why it isn't, though it was to be."""

    compiled: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class Launch:
    """Where a run came from: its directory, the words the user typed, its number in a sweep; and how it is computed."""

    directory: Path
    overrides: list[str]
    job: int = 0
    compilation: Compilation = Compilation()


def config_digest(config: RunConfig) -> str:
    """SHA-256 of everything that a curve depends on."""
    return digest_of(config.as_dict())


def digest_of(config: dict[str, Any]) -> str:
    """Of what differs from the schema's defaults, so that a key that is added later changes no digest of a run that is
    there.
    """
    defaults = default_values()
    values = {key: value for key, value in dotted(config).items() if key not in defaults or value != defaults[key]}
    kept = {key: value for key, value in values.items() if key != "dataset.root" and not key.startswith("checkpoint.")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


@cache
def default_values() -> dict[str, Any]:
    """Of the schema, by dotted key."""
    return dotted(RunConfig().as_dict())


def dotted(config: dict[str, Any]) -> dict[str, Any]:
    """{"norm": {"eps": 1}, "seed": 2} → {"norm.eps": 1, "seed": 2}"""
    found = dict[str, Any]()
    for key, value in config.items():
        found |= {f"{key}.{part}": v for part, v in value.items()} if isinstance(value, dict) else {key: value}
    return found


def create_run(launch: Launch, config: RunConfig, facts: dict[str, Any]) -> None:
    """Claim the directory with its run.json, under its lock."""
    launch.directory.mkdir(parents=True, exist_ok=True)
    record = {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "job": launch.job,
        "overrides": launch.overrides,
        "config": config.as_dict(),
        "config_sha256": config_digest(config),
        "paths": paths_of(config, launch.directory),
        "code": git_state(),
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": machine(),
        **facts,
    }
    write_whole(launch.directory / RUN, to_json(record))


def read_record(directory: Path) -> dict[str, Any] | None:
    """None where there is none that can be read."""
    try:
        record: dict[str, Any] = read_json(directory / RUN)
    except (FileNotFoundError, ValueError):
        return None
    return record if fits(record, RECORD) else None


def reopen_run(directory: Path, config: RunConfig, step: int) -> None:
    """For a run that is resumed from a step: it isn't over any more, and checkpoints of later ones were damaged."""
    record_paths(directory, config)
    (directory / RUN).touch()  # the time at which it was opened
    later = (path for path in directory.glob(f"{RESUME}*") if path.name >= f"{resume_at(directory, step + 1).name}")
    for path in (directory / SUMMARY, *later):
        path.unlink(missing_ok=True)
    clear_parts(directory)


def record_paths(directory: Path, config: RunConfig) -> None:
    """Where the folders are by now that a run reads."""
    record, paths = read_json(directory / RUN), paths_of(config, directory)
    if record.get("paths") != paths:
        write_whole(directory / RUN, to_json(record | {"paths": paths}))


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    write_whole(directory / SUMMARY, to_json(summary))


def write_failure(directory: Path, error: str) -> None:
    """But of a run that is over: that one stays what it is."""
    if complete_run(directory) is None:
        write_summary(directory, {"status": "failed", "error": error})


def close_interrupted(directory: Path, step: int) -> None:
    """For a run whose process was killed before it could say so itself."""
    if not (directory / SUMMARY).exists():
        write_summary(directory, {"status": "interrupted", "steps": step})


def clear_run(directory: Path) -> None:
    """Remove what a run wrote, so that it can start again in the same directory. Hydra's record stays, and run.json.
    Of a directory that is no run's nothing but what was being written as one was killed.
    """
    clear_parts(directory)
    if not (directory / RUN).exists():
        return
    clear_progress(directory)
    for path in (*(directory / name for name in FILES), *directory.glob(EVENTS), *directory.glob(f"{KEPT}*")):
        path.unlink(missing_ok=True)


def clear_progress(directory: Path) -> None:
    """What a run that is over could have gone on from, and what was being written when a process was killed."""
    for path in directory.glob(f"{RESUME}*"):
        remove(path)
    clear_parts(directory)


def resume_at(directory: Path, step: int) -> Path:
    """Of a run that isn't over yet."""
    return directory / RESUME.replace("*", f"{step:09d}")


def checkpoint_at(directory: Path, step: int) -> Path:
    """Of an evaluation, where `eval.keep`."""
    return directory / KEPT.replace("*", f"{step:09d}")


def kept_checkpoints(directory: Path) -> list[Path]:
    """Those of the evaluations in their order, or the last state alone."""
    return sorted(directory.glob(KEPT)) or [directory / CHECKPOINT]


def to_json(value: Any) -> str:
    """Indented JSON; NaN and Inf, which JSON lacks, become null. A byte of a path that is not UTF-8, which Python has
    as half of a character, is written as JSON's escape.
    """

    def finite(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: finite(item) for key, item in part.items()}
        if isinstance(part, list | tuple):
            return [finite(item) for item in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    text = json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n"
    return re.sub("[\ud800-\udfff]", lambda byte: f"\\u{ord(byte[0]):x}", text)


@cache
def git_state() -> dict[str, Any]:
    """Commit of bnexp's source and whether it has uncommitted changes; null for an installed package."""
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return {"commit": None, "dirty": None}
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(source), *command], capture_output=True, encoding="utf-8", check=True
            ).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit.strip(), "dirty": bool(status.strip())}


@cache
def machine() -> str:
    """Processor, as the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


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
    def of_these_versions(self) -> bool:
        packages: dict[str, str] = self.record["packages"]
        return packages.items() >= deciding_versions().items()

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


def holds_run(directory: Path) -> bool:
    """Whether it is a run's directory or a sweep's."""
    return (directory / RUN).exists() or any(directory.glob(f"*/{RUN}"))


COMPLETE = ("finished", "diverged")


def complete_runs(sweep: Path) -> dict[str, RunRecord]:
    """Of a sweep's directory the complete runs that these versions of bnexp and torch made, by their configuration's
    digest.
    """
    return {run.digest: run for run in find_runs([sweep]) if run.complete and run.of_these_versions}


def complete_run(directory: Path) -> RunRecord | None:
    """The directory's own run, where it is over."""
    with suppress(OSError, ValueError):
        run = read_run(directory)
        return run if run.complete else None
    return None


def deciding_versions() -> dict[str, str]:
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
