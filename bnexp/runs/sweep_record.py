"""sweep.json: what a sweep is made of, those of its runs included that never started."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnexp.runs.console import command, print_error
from bnexp.runs.directory import SWEEP, digest_of
from bnexp.runs.files import is_name, read_json
from bnexp.runs.record import RECORD, fits


@dataclass(frozen=True)
class SweepRecord:
    """A sweep.json. `jobs`: of each run its configuration, its overrides ("words") and those of them that tell it from
    the others ("overrides"), by its digest.
    """

    folder: Path
    jobs: dict[str, dict[str, Any]]

    @property
    def command(self) -> str:
        """What finishes its runs, for a shell."""
        return command("resume", self.folder)


def sweep_files(roots: list[Path]) -> list[Path]:
    """The records of sweeps below some directories, each once."""
    found = {path.resolve(): path for root in reversed(roots) for path in sorted(root.rglob(SWEEP), reverse=True)}
    return list(reversed(found.values()))


def read_sweep(path: Path) -> SweepRecord | None:
    """None where it can't be read, which is said in a line."""
    try:
        jobs = read_json(path)["jobs"]
        if not all(fits(entry, {"config": RECORD["config"], "words": list, "overrides": list}) for entry in jobs):
            raise ValueError("a job has no configuration")
        return SweepRecord(path.parent, {digest_of(entry["config"]): entry for entry in jobs})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        print_error(f"{path} cannot be read: what was planned there is not known")
        return None


def comparison_of(directory: Path) -> dict[str, str | None] | None:
    """How a sweep is compared once it is done, {"by": KEY or None}. None where it isn't, as
    `bnexp train -m` makes it, or where that can't be read.
    """
    try:
        record = read_json(directory / SWEEP)
    except (OSError, ValueError):
        return None
    found: Any = record.get("compare") if isinstance(record, dict) else None
    return {"by": found["by"]} if fits(found, {"by": str | None}) else None


def recorded_by(directory: Path) -> str | None:
    """The key that the sweep was first compared by, where it was named."""
    return (comparison_of(directory) or {"by": None})["by"]


def run_name(overrides: list[str], number: int) -> str:
    """The folder of a sweep's run: the overrides that tell it from the others, or its number where they are no name."""
    name = ",".join(sorted(overrides))
    return name if is_name(name) else str(number)
