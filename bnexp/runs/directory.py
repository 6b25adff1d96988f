"""The files of a run's directory: their names, and functions that write and remove them."""

import hashlib
import json
import math
import platform
import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from bnexp.runs.config import RunConfig
from bnexp.runs.files import clear_parts, read_json, remove, write_whole
from bnexp.runs.parse import paths_of

SCHEMA = 2  # of run.json; in version 1, `config_sha256` was computed from the whole configuration
SWEEP = "sweep.json"
RUN, METRICS, TIMING = "run.json", "metrics.csv", "timing.csv"
SUMMARY, CHECKPOINT = "summary.json", "checkpoint.safetensors"
RESUME = "resume-*.safetensors"
FILES = (METRICS, TIMING, SUMMARY, CHECKPOINT, f"{CHECKPOINT}.sha256")
EVENTS, LOG = "events.out.tfevents.*", "bnexp.log"
KEPT = "checkpoint-*.safetensors"
PACKAGES = ("bnexp", "torch", "torchvision", "numpy", "hydra-core", "tensorboard")


version = cache(metadata.version)  # of a package; each reading of its files takes 1 ms


@dataclass(frozen=True)
class Compilation:
    """Whether a run's step is compiled. problem: why no compiler works, if it was to be; else None."""

    compiled: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class Launch:
    """How a run is launched.

    directory: the run's directory. overrides: the user's overrides of the run's keys. job: the run's number in its
    sweep. compilation: whether its step is compiled.
    """

    directory: Path
    overrides: list[str]
    job: int = 0
    compilation: Compilation = Compilation()


def config_digest(config: RunConfig) -> str:
    """Return the SHA-256 of everything in a configuration that the metrics depend on."""
    return digest_of(config.as_dict())


def digest_of(config: dict[str, Any]) -> str:
    """Return the SHA-256 of the values of a configuration, in nested dictionaries, that differ from the defaults.

    dataset.root and checkpoint.… are left out, since metrics do not depend on them. A key that is added to the schema
    later does not change the digests of existing runs.
    """
    defaults = default_values()
    values = {key: value for key, value in dotted(config).items() if key not in defaults or value != defaults[key]}
    relevant = {
        key: value for key, value in values.items() if key != "dataset.root" and not key.startswith("checkpoint.")
    }
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


@cache
def default_values() -> dict[str, Any]:
    """Return the schema's defaults by dotted keys."""
    return dotted(RunConfig().as_dict())


def dotted(config: dict[str, Any]) -> dict[str, Any]:
    """Flatten a configuration of one level of groups: {"norm": {"eps": 1}, "seed": 2} → {"norm.eps": 1, "seed": 2}."""
    values = dict[str, Any]()
    for key, value in config.items():
        values |= {f"{key}.{part}": v for part, v in value.items()} if isinstance(value, dict) else {key: value}
    return values


def flatten(config: dict[str, Any]) -> dict[str, Any]:
    """Flatten a configuration, with a choice's name by its group: {"norm": {"name": "batch"}} → {"norm": "batch"}."""
    return {key.removesuffix(".name"): value for key, value in dotted(config).items()}


def create_run(launch: Launch, config: RunConfig, facts: dict[str, Any]) -> None:
    """Create a run's directory and write run.json. facts: its further entries. The caller has locked the directory."""
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


def reopen_run(directory: Path, config: RunConfig, step: int) -> None:
    """Reopen a run that is resumed after `step` updates.

    Its recorded paths and the modification time of run.json are updated. Its summary, half-written files, and saved
    states of later steps, which were unusable, are removed.
    """
    record_paths(directory, config)
    (directory / RUN).touch()  # `opened_at` reads its modification time
    later = (path for path in directory.glob(f"{RESUME}*") if path.name >= f"{progress_path(directory, step + 1).name}")
    for path in (directory / SUMMARY, *later):
        path.unlink(missing_ok=True)
    clear_parts(directory)


def record_paths(directory: Path, config: RunConfig) -> None:
    """Update the paths in a run's run.json, where they have changed: of its directory and the folders that it reads."""
    record, paths = read_json(directory / RUN), paths_of(config, directory)
    if record.get("paths") != paths:
        write_whole(directory / RUN, to_json(record | {"paths": paths}))


def write_summary(directory: Path, summary: dict[str, Any]) -> None:
    """Write summary.json, which closes the run."""
    write_whole(directory / SUMMARY, to_json(summary))


def close_interrupted(directory: Path, step: int) -> None:
    """Write a summary with the status "interrupted", unless the run has one. step: the number of updates in it."""
    if not (directory / SUMMARY).exists():
        write_summary(directory, {"status": "interrupted", "steps": step})


def clear_run(directory: Path) -> None:
    """Remove the files of a run, except run.json, its log and Hydra's record, so that it can start anew in its
    directory.

    In a directory without run.json, only half-written files are removed.
    """
    clear_parts(directory)
    if not (directory / RUN).exists():
        return
    clear_progress(directory)
    for path in (*(directory / name for name in FILES), *directory.glob(EVENTS), *directory.glob(f"{KEPT}*")):
        path.unlink(missing_ok=True)


def clear_progress(directory: Path) -> None:
    """Remove the saved states from which a run could be resumed, and half-written files of killed processes."""
    for path in directory.glob(f"{RESUME}*"):
        remove(path)
    clear_parts(directory)


def progress_path(directory: Path, step: int) -> Path:
    """Return the path of the saved state after `step` updates, from which the run can be resumed."""
    return directory / RESUME.replace("*", f"{step:09d}")


def checkpoint_path(directory: Path, step: int) -> Path:
    """Return the path of the checkpoint that eval.keep=true saves at the evaluation after `step` updates."""
    return directory / KEPT.replace("*", f"{step:09d}")


def kept_checkpoints(directory: Path) -> list[Path]:
    """Return the paths of the checkpoints of evaluations, in order; without any, of the final one, existing or not."""
    return sorted(directory.glob(KEPT)) or [directory / CHECKPOINT]


def checkpoint_files(directory: Path) -> list[Path]:
    """Return the files of a run's directory that hold weights and states, and their digests."""
    patterns = (f"{CHECKPOINT}*", f"{KEPT}*", f"{RESUME}*")
    return sorted(path for pattern in patterns for path in directory.glob(pattern))


def run_files(directory: Path) -> list[Path]:
    """Return all files and folders that a run has in its directory; other files there belong to somebody else."""
    patterns = (RUN, METRICS, TIMING, SUMMARY, EVENTS, LOG, ".hydra")
    return [*checkpoint_files(directory), *sorted(path for pattern in patterns for path in directory.glob(pattern))]


def to_json(value: Any) -> str:
    """Return a value as indented JSON with a line break at the end. NaN and infinities, which JSON lacks, become null.

    Bytes of paths that are not UTF-8, which Python represents by surrogates, are written as escapes.
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
    """Return the "commit" of bnexp's source and whether it is "dirty" (uncommitted changes).

    Both values are None if git can't tell.
    """
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return {"commit": None, "dirty": None}
    command = ["git", "-C", str(source), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        text = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": text.removesuffix("-dirty"), "dirty": text.endswith("-dirty")}


@cache
def machine() -> str:
    """Return the name of the processor, or its architecture where it has none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def holds_run(directory: Path) -> bool:
    """Return whether a directory, or a folder directly in it, has a run.json."""
    return (directory / RUN).exists() or any(directory.glob(f"*/{RUN}"))
