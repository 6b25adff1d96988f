"""`bnexp status` of a folder, and `bnexp clean`: which runs and sweeps there are below it, and in which state.

Everything is read from the directories, none of which is changed by reading.
"""

import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bnexp.runs.config import ConfigError
from bnexp.runs.console import count, duration, print_line, show_table
from bnexp.runs.directory import SWEEP
from bnexp.runs.lock import LOCK, holder_of, is_locked
from bnexp.runs.record import last_evaluation, read_jobs, read_run, run_directories, sweep_directories
from bnexp.sweeps.slurm import is_queued

SHOWN_EVERY = 10.0  # seconds between tables of --watch
MOST_LINES = 20  # about single runs
HEADER = ["directory", "state", "runs", "step", "accuracy", "size", "age"]
ORDER = ("running", "failed", "damaged", "interrupted", "waiting", "diverged", "finished")  # the first is a sweep's


@dataclass(frozen=True)
class RunEntry:
    """A run below a folder.

    state: of ORDER; "damaged": its record can't be read; "waiting": planned, and not begun. why: the error of a failed
    run, who trains a running one, else "". step, accuracy: of the latest evaluation, None before the first. steps: all
    of its steps, None where they can't be read. bytes: of its files. changed: when the last of them was written, in
    seconds since 1970.
    """

    directory: Path
    state: str
    why: str
    step: int | None
    steps: int | None
    accuracy: float | None
    bytes: int
    changed: float


@dataclass(frozen=True)
class SweepEntry:
    """A sweep below a folder, or a run by itself, with its runs."""

    directory: Path
    runs: list[RunEntry]

    @property
    def state(self) -> str:
        """The state of its runs that comes first in ORDER."""
        states = {run.state for run in self.runs}
        return next(state for state in ORDER if state in states)

    def cells(self, root: Path, now: float) -> list[str]:
        """Return the row under HEADER. root: the folder that its directory is shown relative to."""
        done = sum(run.state in ("finished", "diverged") for run in self.runs)
        accuracies = [run.accuracy for run in self.runs if run.accuracy is not None]
        steps = [run.step for run in self.runs if run.step is not None]
        name = self.directory.relative_to(root).as_posix() if self.directory != root else str(root)
        return [
            name,
            self.state if len(self.runs) == 1 else states_text(self.runs),
            f"{done} of {len(self.runs)}" if len(self.runs) > 1 else "1",
            f"{max(steps):,}" if steps else "",
            f"{sum(accuracies) / len(accuracies):.1%}" if accuracies else "",
            size_text(sum(run.bytes for run in self.runs)),
            duration(now - max(run.changed for run in self.runs)),
        ]


def states_text(runs: list[RunEntry]) -> str:
    """Return the states of runs with their numbers: "2 running, 1 failed, 7 finished"."""
    numbers = Counter(run.state for run in runs)
    return ", ".join(f"{numbers[state]} {state}" for state in ORDER if state in numbers)


def size_text(size: float) -> str:
    """Return a number of bytes as text: "812 kB", "1.3 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


# ---- reading


def is_alive(directory: Path) -> bool:
    """Return whether a process trains the run or sweep in a directory, or jobs of Slurm do or will."""
    return is_locked(directory) or is_queued(directory)


def find_entries(root: Path) -> list[SweepEntry]:
    """Return the sweeps in and below a folder, and the runs that belong to none, the latest change first."""
    sweeps = {directory: planned_runs(directory) for directory in sweep_directories([root])}
    entries: dict[Path, list[RunEntry]] = {directory: [] for directory in sweeps}
    alive = {directory: is_queued(directory) for directory in sweeps}
    for directory in run_directories(root):
        home = next((above for above in (directory, *directory.parents) if above in sweeps), directory)
        entries.setdefault(home, []).append(read_entry(directory, alive.get(home, False)))
        sweeps.get(home, set[Path]()).discard(directory)
    for home, missing in sweeps.items():
        changed = (home / SWEEP).stat().st_mtime
        entries[home] += [RunEntry(path, "waiting", "", None, None, None, 0, changed) for path in sorted(missing)]
    found = [SweepEntry(home, runs) for home, runs in entries.items() if runs]
    return sorted(found, key=lambda entry: -max(run.changed for run in entry.runs))


def planned_runs(sweep: Path) -> set[Path]:
    """Return the directories of the runs in sweep.json; none where it can't be read."""
    jobs = (read_jobs(sweep) or {}).values()
    return {sweep / str(job["folder"]) for job in jobs if "folder" in job}


def read_entry(directory: Path, queued: bool) -> RunEntry:
    """Return the state of the run in a directory. queued: whether jobs of a cluster train its sweep."""
    latest, (size, changed) = last_evaluation(directory), files_of(directory)
    step, accuracy = latest or (None, None)
    try:
        run = read_run(directory)
    except (OSError, ValueError) as error:
        return RunEntry(directory, "damaged", str(error), step, None, accuracy, size, changed)
    state, why = str(run.summary["status"]), str(run.summary.get("error", ""))
    if state == "unfinished":
        state = "running" if queued or is_locked(directory) else "interrupted"
        why = holder_of(directory / LOCK) if is_locked(directory) else ""
    if run.complete and not isinstance(run.summary.get("test"), dict):
        state = "damaged"
    return RunEntry(directory, state, why, step, int(run.config["steps"]), accuracy, size, changed)


def files_of(directory: Path) -> tuple[int, float]:
    """Return the bytes of all files in and below a directory, and when the last of them was changed."""
    states = []
    for path in directory.rglob("*"):
        with suppress(OSError):
            states.append(path.lstat())
    return sum(state.st_size for state in states), max((state.st_mtime for state in states), default=0.0)


# ---- what is shown


def table_of(entries: Iterable[SweepEntry], root: Path) -> list[list[str]]:
    """Return the rows under HEADER."""
    now = time.time()
    return [entry.cells(root, now) for entry in entries]


def troubles(entries: Iterable[SweepEntry]) -> list[str]:
    """Return a line for each run that failed or is damaged, with the reason, and for each that is running, by whom."""
    runs = [run for entry in entries for run in entry.runs if run.why]
    return [f"{run.directory}: {run.state}{' by' if run.state == 'running' else ':'} {run.why}" for run in runs]


def records(entries: Iterable[SweepEntry]) -> list[dict[str, Any]]:
    """Return all runs for JSON: the fields of `RunEntry`, and the directory of the sweep, None for a run by itself."""
    return [
        asdict(run) | {"directory": str(run.directory), "sweep": None if own(entry, run) else str(entry.directory)}
        for entry in entries
        for run in entry.runs
    ]


def own(entry: SweepEntry, run: RunEntry) -> bool:
    """Return whether a run is by itself, in no sweep."""
    return entry.directory == run.directory


def show_overview(root: Path, watch: bool) -> None:
    """Print a table of the sweeps and runs below a folder, and why some failed; watch: until none is running.

    Raises ConfigError where there is none.
    """
    entries = find_entries(root)
    if not entries:
        raise ConfigError(f"{root} holds no run")
    while watch and any(entry.state in ("running", "waiting") for entry in entries):
        show(entries, root)
        time.sleep(SHOWN_EVERY)
        entries = find_entries(root)
    show(entries, root)


def show(entries: list[SweepEntry], root: Path) -> None:
    """Print the table, a line for each run that needs one, and the number of runs by state."""
    show_table(f"sweeps and runs in {root}", HEADER, table_of(entries, root))
    lines = troubles(entries)
    for line in lines[:MOST_LINES]:
        print_line(line)
    if len(lines) > MOST_LINES:
        print_line(f"and {len(lines) - MOST_LINES} more: bnexp status --json has them")
    print_line(summary_line(entries))


def summary_line(entries: list[SweepEntry]) -> str:
    """Return a line with the number of runs by state, and their size."""
    runs = [run for entry in entries for run in entry.runs]
    return f"{count(len(runs), 'run')}: {states_text(runs)}; {size_text(sum(run.bytes for run in runs))}"
