"""The run directory: this module alone knows its files' names. It writes them and reads them back."""

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


def holds_run(directory: Path) -> bool:
    """Whether it is a run's directory or a sweep's."""
    return (directory / RUN).exists() or any(directory.glob(f"*/{RUN}"))
