"""Read sweep.json, the record of all runs of a sweep, also of those that never started."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnexp.runs.console import command, print_error
from bnexp.runs.directory import SWEEP
from bnexp.runs.files import is_name
from bnexp.runs.record import read_fitting, read_jobs


@dataclass(frozen=True)
class SweepRecord:
    """The record of a sweep.

    folder: the sweep's directory. jobs: digest of a run → its entry, with the keys "config", "words" (all of its
    overrides) and "overrides" (those that not every run of the sweep has).
    """

    folder: Path
    jobs: dict[str, dict[str, Any]]

    @property
    def command(self) -> str:
        """The shell command that trains the remaining runs of the sweep."""
        return command("resume", self.folder)


def sweep_files(roots: list[Path]) -> list[Path]:
    """Return the paths of every sweep.json in and below some directories, each once."""
    paths = {path.resolve(): path for root in reversed(roots) for path in sorted(root.rglob(SWEEP), reverse=True)}
    return list(reversed(paths.values()))


def read_sweep(path: Path) -> SweepRecord | None:
    """Read a sweep.json. Where it can't be read, print an error and return None."""
    jobs = read_jobs(path.parent)
    if jobs is None:
        print_error(f"{path} cannot be read: what was planned there is not known")
        return None
    return SweepRecord(path.parent, jobs)


def comparison_of(directory: Path) -> dict[str, str | None] | None:
    """Return {"by": KEY or None} if a sweep is to be compared when it is finished.

    Return None where it isn't, as a sweep of `bnexp train -m`, or where its sweep.json can't be read.
    """
    record = read_fitting(directory / SWEEP, {"compare": {"by": str | None}})
    return {"by": record["compare"]["by"]} if record else None


def run_name(own_overrides: list[str], number: int) -> str:
    """Return the name of a run's folder: its own overrides, or its number if they can't be a directory's name."""
    name = ",".join(sorted(own_overrides))
    return name if is_name(name) else str(number)
