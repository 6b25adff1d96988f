"""Find the planned runs of a comparison and which are missing: an incomplete comparison must not look complete.

A sweep's record names all of its runs, also those that never started. Outside of a sweep, the existing runs are those
that were planned.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnexp.compare.arms import Panels, only
from bnexp.runs.config import ConfigError
from bnexp.runs.console import command, print_error, printable
from bnexp.runs.directory import SWEEP
from bnexp.runs.record import RunRecord, find_runs, read_jobs, run_directories, run_name, sweep_directories, sweep_order

NOT_STARTED, DAMAGED = "not started", "damaged"
UNREADABLE = "its record cannot be read"
LONGEST_REASON = 200  # characters of a run's error that a report shows
Jobs = dict[str, dict[str, Any]]  # of a sweep, by the digests of their runs


@dataclass(frozen=True)
class Missing:
    """A planned run that can't be compared.

    `status` is that of its summary, or "unfinished", "not started" or "damaged"; `why` is its error, or what is
    damaged, where that is known. `panel`, `arm` and `seed` are None where its record can't be read and no sweep names
    it, `directory` where it never started.
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
    """The planned runs in and below the directories `roots`, without duplicates and in the order of their sweeps.

    `runs`: all whose configuration can be read, in their own record or their sweep's. `finished`: those of them that
    can be compared. `sweeps`: the jobs of sweeps, by directory. `unreadable`: directories of runs whose record can't be
    read and which no sweep names. `unknown`: paths of the records of sweeps that can't be read.
    """

    runs: list[RunRecord]
    finished: list[RunRecord]
    roots: list[Path]
    sweeps: dict[Path, Jobs]
    unreadable: list[Path]
    unknown: list[Path]

    @property
    def size(self) -> int:
        """The number of planned runs, unreadable ones included.

        Runs that never started, of a sweep whose record can't be read, are not counted.
        """
        return len(self.runs) + len(self.unreadable)

    @property
    def complete(self) -> bool:
        """Whether every planned run can be compared, and the record of every sweep can be read."""
        return len(self.finished) == self.size and not self.unknown

    @property
    def unfinished(self) -> list[RunRecord]:
        """Those of `runs` that can't be compared."""
        done = {run.digest for run in self.finished}
        return [run for run in self.runs if run.digest not in done]

    def missing_runs(self, panels: Panels) -> list[Missing]:
        """Return a description of each planned run that can't be compared; `panels` holds all of `self.runs`."""
        missing = [
            missing_run(run, panel, arm)
            for panel, arms in only(panels, self.unfinished).items()
            for arm, runs in arms.items()
            for run in runs
        ]
        return missing + [Missing(None, None, None, DAMAGED, UNREADABLE, str(path), []) for path in self.unreadable]

    def commands(self) -> list[str]:
        """Return shell commands that finish the missing runs: one for each sweep with some, one for all others.

        Before them, one for each run of a sweep that is complete but damaged removes it, so that it starts anew. There
        is no command for a damaged run outside of a sweep.
        """
        removals, sweeps, single_runs = list[str](), list[str](), list[str]()
        for run in self.unfinished:
            sweep = next((folder for folder, jobs in self.sweeps.items() if run.digest in jobs), None)
            if sweep is not None:
                sweeps.append(command("resume", sweep))
                removals += [shlex.join(["rm", "-r", str(run.directory)])] if run.complete else []
            elif not run.complete:
                single_runs.append(str(self.resumable(run.directory)))
        others = [command("resume", *dict.fromkeys(single_runs))] if single_runs else []
        return [*removals, *dict.fromkeys(sweeps), *others]

    def resumable(self, directory: Path) -> Path:
        """Return the directory to pass to `bnexp resume` for a run: the run's own, or its parent.

        The parent where it lies within the roots, is no sweep's, and has all runs below it directly in it.
        """
        parent = directory.parent
        inside = any(parent.is_relative_to(root) for root in self.roots)
        flat = all(run.directory.parent == parent for run in self.runs if run.directory.is_relative_to(parent))
        return parent if inside and flat and not (parent / SWEEP).exists() else directory


def missing_run(run: RunRecord, panel: str, arm: str) -> Missing:
    """Return the description of a run that can't be compared, with control characters escaped."""
    status, why = printable(str(run.summary["status"])), run.summary.get("error")
    if run.complete:
        status, why = DAMAGED, f"{run.flaw()}; it starts anew once its folder is removed"
    directory = None if status == NOT_STARTED else printable(str(run.directory))
    overrides = [printable(str(text)) for text in run.record["overrides"]]
    return Missing(panel, arm, run.seed, status, shortened(str(why)) if why else None, directory, overrides)


def shortened(text: str) -> str:
    """Return a text in one line; what is beyond LONGEST_REASON characters is replaced by an ellipsis."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}…"


# ---- reading


def read_planned(roots: list[Path]) -> Planned:
    """Read the planned runs in and below `roots`; print an error for each run's directory that is left out, and for
    each sweep's record that can't be read. Runs that never started are not printed.

    Raises ConfigError where no run can be compared.
    """
    runs = find_runs(roots)
    finished = without_duplicates(without_flaws(runs))
    records = {folder: read_jobs(folder) for folder in sweep_directories(roots)}
    sweeps = {folder: jobs for folder, jobs in records.items() if jobs is not None}
    unknown = [folder / SWEEP for folder in records if folder not in sweeps]
    for path in unknown:
        print_error(f"{path} cannot be read: what was planned there is not known")
    readable = {run.directory.resolve() for run in runs}
    unreadable = [path for root in roots for path in run_directories(root) if path.resolve() not in readable]
    not_started = not_started_runs(sweeps, {run.digest for run in runs}, {path.resolve() for path in unreadable})
    known = {run.directory.resolve() for run in not_started}
    by_digest = {run.digest: run for run in [*reversed([*runs, *not_started]), *finished]}  # finished: last, to win
    planned = Planned(
        runs=sorted(by_digest.values(), key=sweep_order(roots)),
        finished=finished,
        roots=roots,
        sweeps=sweeps,
        unreadable=[path for path in unreadable if path.resolve() not in known],
        unknown=unknown,
    )
    if not finished:
        raise ConfigError(nothing_finished(planned))
    return planned


def nothing_finished(planned: Planned) -> str:
    """Return the error message that no run finished, with a command to resume by if there is one."""
    text = f"{', '.join(map(str, planned.roots))}: no run has finished"
    commands = planned.commands()
    more = f" and {len(commands) - 1} more" if len(commands) > 1 else ""
    return f"{text}; finish it by: {commands[0]}{more}" if commands else text


def without_flaws(runs: list[RunRecord]) -> list[RunRecord]:
    """Return the runs that can be compared; print an error for each other run."""
    flaws = {run.directory: run.flaw() for run in runs}
    for directory, flaw in flaws.items():
        if flaw is not None:
            print_error(f"{directory} is left out: {flaw}")
    return [run for run in runs if flaws[run.directory] is None]


def without_duplicates(runs: list[RunRecord]) -> list[RunRecord]:
    """Return the first run of each configuration; print an error for each other run."""
    unique: dict[str, RunRecord] = {}
    for run in runs:
        earlier = unique.setdefault(run.digest, run)
        if earlier is not run:
            print_error(f"{run.directory} is left out: the same run as {earlier.directory}")
    return list(unique.values())


def not_started_runs(sweeps: dict[Path, Jobs], started: set[str], unreadable: set[Path]) -> list[RunRecord]:
    """Return a record, each once, of the runs that sweeps name and that have no readable record of their own.

    `started`: digests of the runs with a record; `unreadable`: directories of runs whose record can't be read, whose
    status is "damaged" in place of "not started".
    """
    missing: dict[str, RunRecord] = {}
    for folder, jobs in sweeps.items():
        for number, (digest, entry) in enumerate(jobs.items()):
            if digest not in started:
                own_overrides = [str(text) for text in entry["overrides"]]
                directory = folder / run_name(own_overrides, number)
                record = {"config": entry["config"], "job": number, "created": "", "overrides": entry["words"]}
                damaged = directory.resolve() in unreadable
                summary = {"status": DAMAGED, "error": UNREADABLE} if damaged else {"status": NOT_STARTED}
                missing.setdefault(digest, RunRecord(directory, record, summary))
    return list(missing.values())


# ---- description


def describe_missing(missing: list[Missing]) -> list[str]:
    """Return the missing runs as text, one line for each arm and reason: the seeds, the status and the reason."""
    groups: dict[tuple[str, str], list[int]] = {}
    for run in missing:
        arm = ", ".join(part for part in (run.panel, run.arm) if part) or printable(str(run.directory))
        reason = run.status + (f" ({run.why})" if run.why else "")
        groups.setdefault((arm, reason), []).extend([] if run.seed is None else [run.seed])
    return [f"{arm}: {f'{seed_ranges(seeds)} {reason}'.strip()}" for (arm, reason), seeds in groups.items()]


def seed_ranges(seeds: list[int]) -> str:
    """Return seeds as text: "seeds 0 to 3, 7". Empty without any."""
    ranges: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if ranges and seed == ranges[-1][-1] + 1:
            ranges[-1].append(seed)
        else:
            ranges.append([seed])
    texts = [f"{part[0]} to {part[-1]}" if len(part) > 2 else ", ".join(map(str, part)) for part in ranges]
    return f"seed{'s' * (len(set(seeds)) > 1)} {', '.join(texts)}" if texts else ""
