"""What a comparison was planned with, and which of it is missing: an incomplete one must not look complete.

A sweep's record names all of its runs, those that never started included; of other runs, those that are there are the
plan.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bnexp.compare.arms import Panels
from bnexp.runs.config import ConfigError
from bnexp.runs.console import command, count, print_error, printable
from bnexp.runs.directory import SWEEP
from bnexp.runs.record import RunRecord, find_runs, order_of_sweep, run_places
from bnexp.runs.sweep_record import SweepRecord, read_sweep, run_name, sweep_files

NOT_STARTED, DAMAGED = "not started", "damaged"
LONGEST_REASON = 200  # characters of what made a run fail


@dataclass(frozen=True)
class Missing:
    """A planned run that can't be compared. `panel`, `arm` and `seed` are None where its record can't be read,
    `directory` where it never started; `why`: what made it fail, or what is damaged.
    """

    panel: str | None
    arm: str | None
    seed: int | None
    status: str
    why: str | None
    directory: str | None
    overrides: list[str]


@dataclass(frozen=True)
class Planned:
    """The runs below some directories, each without_duplicates, in the order of their sweeps: all that were planned, and those that
    finished. `unreadable`: directories of runs whose record can't be read, and that no sweep names; `unknown`: records
    of sweeps that can't be read.
    """

    runs: list[RunRecord]
    finished: list[RunRecord]
    roots: list[Path]
    sweeps: list[SweepRecord]
    unreadable: list[Path]
    unknown: list[Path]

    @property
    def size(self) -> int:
        return len(self.runs) + len(self.unreadable)

    @property
    def complete(self) -> bool:
        return len(self.finished) == self.size and not self.unknown

    @property
    def tally(self) -> str:
        """1 of 8 planned runs finished; empty where nothing is missing."""
        if self.complete:
            return ""
        words = f"{len(self.finished)} of {count(self.size, 'planned run')} finished"
        return words + (f" and {SWEEP} cannot be read" if self.unknown else "")

    def missing_runs(self, panels: Panels) -> list[Missing]:
        """The planned runs that are missing, each with its place in the panels."""
        done = {run.digest for run in self.finished}
        found = [
            missing_run(run, panel, arm)
            for panel, arms in panels.items()
            for arm, runs in arms.items()
            for run in runs
            if run.digest not in done
        ]
        lost = "its record cannot be read"
        return found + [Missing(None, None, None, DAMAGED, lost, str(place), []) for place in self.unreadable]

    def commands(self) -> list[str]:
        """What finishes the missing runs, for a shell: one command a sweep, and one for all other runs."""
        done = {run.digest for run in self.finished}
        found, alone = list[str](), list[str]()
        for run in self.runs:
            if run.digest not in done:
                sweep = next((sweep for sweep in self.sweeps if run.digest in sweep.jobs), None)
                if sweep is not None:
                    if run.complete:  # and damaged: it is over, and starts anew without_duplicates it is gone
                        found.append(shlex.join(["rm", "-r", str(run.directory)]))
                    found.append(sweep.command)
                elif not run.complete:
                    alone.append(str(self.resumable(run.directory)))
        others = [command("resume", *dict.fromkeys(alone))] if alone else []
        return [*dict.fromkeys(found), *others]

    def resumable(self, directory: Path) -> Path:
        """A run's directory, or the one above where that holds runs alone."""
        above = directory.parent
        inside = any(above.is_relative_to(root) for root in self.roots)
        runs = [run.directory.parent for run in self.runs if run.directory.is_relative_to(above)]
        flat = all(parent == above for parent in runs)
        return above if inside and flat and not (above / SWEEP).exists() else directory


def missing_run(run: RunRecord, panel: str, arm: str) -> Missing:
    status, why = outcome(run)
    directory = None if status == NOT_STARTED else printable(str(run.directory))
    return Missing(panel, arm, run.seed, status, why, directory, [printable(str(w)) for w in run.record["overrides"]])


def outcome(run: RunRecord) -> tuple[str, str | None]:
    """Status of a run that can't be compared, and why."""
    if run.complete:
        return DAMAGED, f"{run.flaw()}; it starts anew without_duplicates its folder is removed"
    why = run.summary.get("error")
    return printable(str(run.summary["status"])), shortened(str(why)) if why else None


def shortened(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}…"


# ---- reading


def read_planned(roots: list[Path]) -> Planned:
    """Names runs that are left out. Raises ConfigError where no run finished."""
    runs = find_runs(roots)
    finished = without_duplicates(without_flaws(runs))
    records = {path: read_sweep(path) for path in sweep_files(roots)}
    sweeps = [record for record in records.values() if record is not None]
    read = {run.directory.resolve() for run in runs}
    unreadable = [place for root in roots for place in run_places(root) if place.resolve() not in read]
    named = not_started_runs(sweeps, {run.digest for run in runs}, {place.resolve() for place in unreadable})
    known = {run.directory.resolve() for run in named}
    every = {run.digest: run for run in [*reversed([*runs, *named]), *finished]}  # the finished one of two
    planned = Planned(
        runs=sorted(every.values(), key=sweep_order(roots)),
        finished=sorted(finished, key=sweep_order(roots)),
        roots=roots,
        sweeps=sweeps,
        unreadable=[place for place in unreadable if place.resolve() not in known],
        unknown=[path for path, record in records.items() if record is None],
    )
    if not finished:
        raise ConfigError(nothing_finished(planned, roots))
    return planned


def nothing_finished(planned: Planned, roots: list[Path]) -> str:
    text = f"{', '.join(map(str, roots))}: no finished run is there to report"
    commands = planned.commands()
    more = f" and {len(commands) - 1} more" if len(commands) > 1 else ""
    return f"{text}; resume it by: {commands[0]}{more}" if commands else text


def without_flaws(runs: list[RunRecord]) -> list[RunRecord]:
    """The runs that can be compared; the others are named."""
    flaws = [run.flaw() for run in runs]
    for run, flaw in zip(runs, flaws, strict=True):
        if flaw is not None:
            print_error(f"{run.directory} is left out: {flaw}")
    return [run for run, flaw in zip(runs, flaws, strict=True) if flaw is None]


def without_duplicates(runs: list[RunRecord]) -> list[RunRecord]:
    """Without those that are there a second time, which are named."""
    found: dict[str, RunRecord] = {}
    for run in runs:
        earlier = found.setdefault(run.digest, run)
        if earlier is not run:
            print_error(f"{run.directory} is left out: the same run as {earlier.directory}")
    return list(found.values())


def not_started_runs(sweeps: list[SweepRecord], started: set[str], unreadable: set[Path]) -> list[RunRecord]:
    """Planned runs without a record of their own, one for each."""
    found: dict[str, RunRecord] = {}
    for sweep in sweeps:
        for number, (digest, entry) in enumerate(sweep.jobs.items()):
            if digest not in started:
                overrides = [str(word) for word in entry["overrides"]]
                directory = sweep.folder / run_name(overrides, number)
                record = {"config": entry["config"], "job": number, "created": "", "overrides": entry["words"]}
                lost = directory.resolve() in unreadable
                summary = {"status": DAMAGED, "error": "its record cannot be read"} if lost else {"status": NOT_STARTED}
                found.setdefault(digest, RunRecord(directory, record, summary))
    return list(found.values())


def sweep_order(roots: list[Path]) -> Callable[[RunRecord], tuple[int, int, str]]:
    """A run's place among others, as `find_runs` has it: by root, place in its sweep, time."""
    order = cache(order_of_sweep)

    def key(run: RunRecord) -> tuple[int, int, str]:
        above = (number for number, root in enumerate(roots) if run.directory.is_relative_to(root))
        return next(above, len(roots)), order(run.directory.parent).get(run.digest, run.job), run.record["created"]

    return key


# ---- words


def describe_missing(missing: list[Missing]) -> list[str]:
    """A line for all runs of an arm that are missing for the same reason."""
    groups: dict[tuple[str, str], list[int]] = {}
    for run in missing:
        arm = ", ".join(part for part in (run.panel, run.arm) if part) or printable(str(run.directory))
        reason = run.status + (f" ({run.why})" if run.why else "")
        groups.setdefault((arm, reason), []).extend([] if run.seed is None else [run.seed])
    return [f"{arm}: {f'{seed_ranges(seeds)} {reason}'.strip()}" for (arm, reason), seeds in groups.items()]


def seed_ranges(seeds: list[int]) -> str:
    """seeds 0 to 3, 7; empty without any."""
    ranges: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if ranges and seed == ranges[-1][-1] + 1:
            ranges[-1].append(seed)
        else:
            ranges.append([seed])
    words = [f"{part[0]} to {part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in ranges]
    return f"seed{'s' * (len(set(seeds)) > 1)} {', '.join(words)}" if words else ""
