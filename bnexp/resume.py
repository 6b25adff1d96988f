"""`bnexp resume`: what a run or a sweep that was cut off has left to do.

It reads JSON and safetensors alone and composes nothing, so that no file can name what is executed: a run that it
starts for the first time has no record of Hydra's.
"""

import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bnexp.cache import open_cache
from bnexp.config import ConfigError, RunConfig, paths_in, paths_of, recorded, require
from bnexp.console import command, say, say_once
from bnexp.data import load_data, show_contents
from bnexp.datasets.images import Contents
from bnexp.engine import decide_compilation
from bnexp.files import clear_parts, read_json, write_whole
from bnexp.lock import Lock
from bnexp.messages import explain
from bnexp.planned import comparison_of, run_name
from bnexp.running import Sweep, train_jobs
from bnexp.runs import (
    SWEEP,
    Compilation,
    Launch,
    RunRecord,
    clear_progress,
    complete_runs,
    config_digest,
    find_runs,
    fits,
    locate,
    record_paths,
    to_json,
)
from bnexp.sweep import Job, Options, StackOfJobs, parse_options, plan_sweep
from bnexp.train import check, check_facts, check_start
from bnexp.workers import Emit


def write_jobs(
    directory: Path, jobs: list[Job], options: Options, compare: dict[str, str | None] | None = None
) -> None:
    """What a sweep is made of, those of its runs that never start included. `compare`: how it is compared once it is
    done, {"by": KEY or None}; how it was compared first stays.
    """
    entries = [
        {
            "words": job.words,
            "overrides": job.overrides,
            "config": job.config.as_dict(),
            "paths": paths_of(job.config, directory),
        }
        for job in jobs
    ]
    settings = {"workers": options.workers or "auto", "max_stack": options.max_stack or "auto"}
    record = {**settings, "submit": options.submit, "compare": comparison_of(directory) or compare, "jobs": entries}
    write_whole(directory / SWEEP, to_json(record))


def clear_leftovers(directory: Path) -> None:
    """What was being written when a sweep's process was killed, and what runs that are over could have gone on from."""
    clear_parts(directory)
    for run in runs_of(directory).values():
        if run.complete:
            clear_progress(run.directory)


def runs_of(directory: Path) -> dict[str, RunRecord]:
    """Of a run's or a sweep's directory: the runs by their configuration's digest."""
    return {run.digest: run for run in find_runs([directory])}


def left_to_do(jobs: list[Job], directory: Path) -> list[Job]:
    """Without a sweep's complete runs."""
    done = complete_runs(directory)
    return [job for job in jobs if config_digest(job.config) not in done]


def with_compilation(jobs: list[Job], there: dict[str, RunRecord]) -> list[Job]:
    """Jobs with whether they are compiled: as the record says, where a run has begun, else as this machine can. Says
    once what is amiss with the compiler. Raises ConfigError.
    """
    decided = [replace(job, compilation=compilation_of(job, there.get(config_digest(job.config)))) for job in jobs]
    for problem in dict.fromkeys(job.compilation.problem for job in decided):
        if problem:
            say_once(f"{problem}: steps run uncompiled, at about half the speed")
    if any(job.compilation.compiled for job in decided) and (amiss := open_cache().problem):
        say_once(f"{amiss}: compiled code is not kept there")
    return decided


def compilation_of(job: Job, run: RunRecord | None) -> Compilation:
    """Raises ConfigError."""
    if run is None:
        return decide_compilation(job.config)
    if not run.record.get("compiled"):
        return Compilation()
    found = decide_compilation(job.config)
    if not found.compiled:
        why = found.problem or "its configuration isn't to be compiled"
        raise ConfigError(f"{run.directory} began compiled, which it cannot go on here: {why}")
    return found


def check_holds(directory: Path, runs: list[RunConfig], names: list[str], numbered: bool) -> bool:
    """Whether a directory holds some of these runs already. Raises ConfigError where it holds others, or these of other
    data, or where others of them would go, or cut off and under other names than Hydra will give them: as a sweep
    grows, numbers in names shift, and so does what tells its runs apart.
    """
    there = runs_of(directory) if directory.is_dir() else {}
    digests = [config_digest(config) for config in runs]
    if there.keys() - {*digests}:
        raise ConfigError(f"{directory} holds another run already: choose another directory")
    for run in in_order_of_data(there):
        name, number = run.directory.name, digests.index(run.digest)
        check_goes_on(run, runs[number], directory)
        if run.directory == directory:
            continue
        if numbered and run.job != number and (name == str(run.job) if names else str(run.job) in name):
            raise ConfigError(f"{directory} names its runs by number, and these have others: choose another directory")
        if names and name != names[number] and not run.complete:
            now = names[number]
            again = command("resume", directory)
            raise ConfigError(f"{run.directory} was cut off and is {now} in this sweep: {again} first")
    return bool(there)


def give_way(directory: Path, runs: list[RunConfig], names: list[str]) -> None:
    """Remove other runs, as those of an older grid of a claim, from the directories that these will have."""
    digests = {config_digest(config) for config in runs}
    for run in runs_of(directory).values():
        if run.digest not in digests and run.directory.name in names:
            shutil.rmtree(run.directory)


def check_runs(runs: list[RunConfig]) -> list[Contents]:
    """All of them, before the first one starts; tells what is worth telling. Returns what each image folder among
    their data sets was read as. Raises ConfigError.
    """
    lines, contents = dict[str, None](), dict[str, Contents | None]()
    for config in sorted(runs, key=lambda config: str(config.dataset)):  # each data set is read once
        lines |= dict.fromkeys(check(config))
        contents[str(config.dataset)] = load_data(config.dataset).contents
    for line in lines:
        say(line)
    return [found for found in contents.values() if found]


# ---- the command


def resume(directory: Path, moved: dict[str, str] | None = None) -> str:
    """Finish what the directory holds; says what was there. `moved`: where folders are by now that its runs read, by
    their keys, which is recorded. Raises ConfigError and SweepError.
    """
    jobs, options = read_jobs(directory, {})
    if moved:
        check_moves(directory, jobs, moved)
        jobs, options = read_jobs(directory, moved)
    there, planned = runs_of(directory), {config_digest(job.config): job.config for job in jobs}
    for run in in_order_of_data(there):
        if run.digest in planned:
            check_goes_on(run, planned[run.digest], directory)
    if moved:
        move(directory, jobs, options, there)
    clear_leftovers(directory)
    left = left_to_do(jobs, directory)
    if not left:
        return f"{directory} is finished: nothing is left to do"
    left = with_compilation(left, there)
    places = {job.number: place_of(job, directory, there) for job in left}
    for job in sorted(left, key=lambda job: str(job.config.dataset)):  # each data set is read once
        check_facts(job.config, places[job.number], load_data(job.config.dataset, directory), job.compilation.compiled)
    for contents in check_runs([job.config for job in left]):
        show_contents(contents)
    plan = plan_sweep(left, options)
    sweep = Sweep(Finisher(places), replace(plan, here=plan.here or directory in places.values()))
    sweep.run()
    sweep.raise_failures({number: why for number, why in sweep.returns.items() if why})
    begun = sum(config_digest(job.config) in there for job in left)
    return f"{directory}: {len(jobs) - len(left)} were finished, {begun} had begun, {len(left) - begun} had not"


@dataclass(frozen=True)
class Finisher:
    """Trains a stack of jobs in their directories. What it returns: by a job's number, why it failed, or None."""

    places: dict[int, Path]

    def __call__(self, stack: StackOfJobs, emit: Emit) -> dict[int, str | None]:
        ends = train_jobs(stack, lambda job: Launch(self.places[job.number], job.words, job.number), emit)
        return {number: explain(end)[1] if isinstance(end, Exception) else None for number, end in ends.items()}


def check_moves(directory: Path, jobs: list[Job], moved: dict[str, str]) -> None:
    """One folder can't take the place of several, nor of none. Raises ConfigError."""
    for key, place in moved.items():
        number = len({paths_in(job.config)[key] for job in jobs if key in paths_in(job.config)})
        require(number > 0, key, place, f"a key that the runs of {directory} have a folder for")
        if number > 1:
            raise ConfigError(
                f"{key}={place} is not allowed: the runs of {directory} read {number} different folders by this key, "
                "which can be moved back, but not all be this one"
            )
        require(Path(place).is_dir(), key, place, "a folder that is there")


def move(directory: Path, jobs: list[Job], options: Options, there: dict[str, RunRecord]) -> None:
    """Record where the folders are by now that the runs read, those of finished runs included."""
    if (directory / SWEEP).exists():
        write_jobs(directory, jobs, options)
    for job in jobs:
        if run := there.get(config_digest(job.config)):
            record_paths(run.directory, job.config)


def in_order_of_data(runs: dict[str, RunRecord]) -> list[RunRecord]:
    """Such that each data set is read once."""
    return sorted(runs.values(), key=lambda run: str(run.config["dataset"]))


def check_goes_on(run: RunRecord, config: RunConfig, directory: Path) -> None:
    """What would make another curve of a run, or an arm of two kinds of runs; before anything is trained, whichever
    command finishes it. Raises ConfigError.
    """
    check_versions(run)
    check_data(run, config, directory)
    if run.complete:
        check_start(config, run.directory, run.record, gone_is_fine=True)
    else:
        check_facts(config, run.directory, load_data(config.dataset))
        Lock(run.directory).release()


def check_versions(run: RunRecord) -> None:
    """Another version of torch would go on to another curve. Raises ConfigError."""
    if not run.of_these_versions:
        made = ", ".join(f"{name} {run.record['packages'].get(name)}" for name in ("bnexp", "torch"))
        raise ConfigError(f"{run.directory} was made by {made}: install these to go on, or start it anew")


def check_data(run: RunRecord, config: RunConfig, directory: Path) -> None:
    """An arm whose seeds saw other images would be two. Raises ConfigError."""
    known = fits(run.record, {"dataset": {"sha256": str}})
    if not known or run.record["dataset"]["sha256"] != load_data(config.dataset, directory).checksum:
        raise ConfigError(f"{run.directory} was made with other data: choose another directory")


def place_of(job: Job, directory: Path, there: dict[str, RunRecord]) -> Path:
    """Where a run is, or where one that never started goes."""
    digest = config_digest(job.config)
    return there[digest].directory if digest in there else directory / run_name(job.overrides, job.number)


def read_jobs(directory: Path, moved: dict[str, str]) -> tuple[list[Job], Options]:
    """A sweep's as it was planned; of a run, itself. Raises ConfigError."""
    path = directory / SWEEP
    if not path.exists():
        return jobs_begun(directory, moved), Options()
    try:
        record = read_json(path)
        if not fits(record, {"workers": object, "max_stack": object, "submit": object, "jobs": list}):
            raise ValueError("it is not the record of a sweep")
        options = parse_options(record["workers"], record["max_stack"], record["submit"])
        jobs = [make_job(number, entry, directory, moved) for number, entry in enumerate(record["jobs"])]
    except (ValueError, KeyError, TypeError) as error:  # a ConfigError is a ValueError
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if options.submit:
        again = f"type its command again with {shlex.quote(f'hydra.sweep.dir={directory}')}, which goes on there"
        raise ConfigError(f"{directory} was submitted to {options.submit}: {again}")
    return jobs, options


def jobs_begun(directory: Path, moved: dict[str, str]) -> list[Job]:
    found = find_runs([directory])
    if not found:
        raise ConfigError(f"{directory} holds neither a run nor a sweep")
    if any(directory not in (run.directory, run.directory.parent) for run in found):
        raise ConfigError(f"{directory} holds runs deeper down: name one run's directory, or one sweep's")
    entries = [run.record | {"words": run.record["overrides"]} for run in found]
    places = [run.directory for run in found]
    return [make_job(n, entry, place, moved) for n, (entry, place) in enumerate(zip(entries, places, strict=True))]


def make_job(number: int, entry: dict[str, Any], directory: Path, moved: dict[str, str]) -> Job:
    """`directory`: of the run or the sweep that has the entry."""
    words, overrides = ([str(word) for word in entry[key]] for key in ("words", "overrides"))
    return Job(number, words, overrides, locate(recorded(entry["config"]), entry.get("paths"), directory, moved))
