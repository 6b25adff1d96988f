"""`bnexp clean`: remove runs that failed or are old, or the checkpoints of runs, and nothing that isn't theirs."""

import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bnexp.runs.config import ConfigError
from bnexp.runs.console import count, print_line
from bnexp.runs.directory import checkpoint_files, run_files
from bnexp.runs.lock import LOCK, Lock
from bnexp.sweeps.overview import RunEntry, SweepEntry, find_entries, is_alive, size_text

DAYS = {"h": 1 / 24, "d": 1, "w": 7}  # units of an age


@dataclass(frozen=True)
class Selection:
    """Which runs are removed, and what of them.

    failed: those that failed alone. checkpoints: their checkpoints alone, and only of runs that have ended. older_than:
    those whose last change is so many seconds ago; None for all.
    """

    failed: bool
    checkpoints: bool
    older_than: float | None

    def chooses(self, run: RunEntry, now: float) -> bool:
        """Return whether a run is chosen; one that is running never is, nor one whose record can't be read."""
        if run.state in ("running", "waiting", "damaged"):
            return False
        old = self.older_than is None or now - run.changed > self.older_than
        ended = run.state in ("finished", "diverged", "failed")
        return old and (run.state == "failed" or not self.failed) and (ended or not self.checkpoints)


def parse_age(text: str) -> float:
    """Return an age, as 30d, in seconds. Raises ConfigError for anything but a whole number of hours, days or weeks."""
    match = re.fullmatch(r"(\d{1,6})([hdw])", text)
    if match is None:
        raise ConfigError(f"--older-than {text} is not allowed: a number of hours, days or weeks, as 12h, 30d or 8w")
    return int(match[1]) * DAYS[match[2]] * 86_400


def parse_selection(arguments: list[str]) -> tuple[Selection, bool, list[str]]:
    """Return what is to be removed, whether --yes was given, and the arguments that are no flags.

    Raises ConfigError where nothing says what to remove, or an age is missing or invalid.
    """
    flags, named, older_than = set[str](), list[str](), None
    rest = iter(arguments)
    for argument in rest:
        if argument in ("--failed", "--checkpoints", "--yes"):
            flags.add(argument)
        elif argument == "--older-than" or argument.startswith("--older-than="):
            age = next(rest, "") if argument == "--older-than" else argument.removeprefix("--older-than=")
            older_than = parse_age(age)
        else:
            named.append(argument)
    if older_than is None and not flags & {"--failed", "--checkpoints"}:
        raise ConfigError("clean needs what to remove: --failed, --checkpoints or --older-than 30d")
    return Selection("--failed" in flags, "--checkpoints" in flags, older_than), "--yes" in flags, named


def clean(root: Path, selection: Selection, yes: bool) -> None:
    """Print which files of runs below a folder would be removed or, with `yes`, remove them.

    Sweeps that are being trained are left out. Raises ConfigError where the folder holds no run or is such a sweep, and
    where a run has begun meanwhile.
    """
    entries = find_entries(root)
    if not entries:
        raise ConfigError(f"{root} holds no run")
    if is_alive(root):
        raise ConfigError(f"{root} is in use: its runs are being trained")
    entries = [entry for entry in entries if not is_alive(entry.directory)]
    files = files_to_remove(entries, selection)
    size = sum(size_of(path) for paths in files.values() for path in paths)
    what = "checkpoints of" if selection.checkpoints else "all files of"
    for directory in files:
        print_line(str(directory))
    if yes:
        remove_files(files)
    if not files:
        print_line(f"{root}: nothing to remove")
        return
    said = "removed" if yes else "would be removed; --yes removes them"
    print_line(f"{what} {count(len(files), 'run')}, {size_text(size)}: {said}")


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    paths = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(part.lstat().st_size for part in paths)


def files_to_remove(entries: Iterable[SweepEntry], selection: Selection) -> dict[Path, list[Path]]:
    """Return the files that would be removed, by the directory of their run; runs without any are left out."""
    now, files = time.time(), checkpoint_files if selection.checkpoints else run_files
    chosen = [run.directory for entry in entries for run in entry.runs if selection.chooses(run, now)]
    return {directory: found for directory in chosen if (found := files(directory))}


def remove_files(files: dict[Path, list[Path]]) -> None:
    """Remove files of runs, and directories that are empty then. Raises ConfigError where a run has begun meanwhile."""
    for directory, paths in files.items():
        with Lock(directory):
            for path in paths:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        with suppress(OSError):
            if {path.name for path in directory.iterdir()} == {LOCK}:
                (directory / LOCK).unlink()
                directory.rmdir()
