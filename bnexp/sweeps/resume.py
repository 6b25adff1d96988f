"""Train the remaining runs of an interrupted run or sweep, for `bnexp resume`; read and check existing runs.

Resuming reads only JSON and safetensors and composes nothing, so that no file can name code to execute. Therefore a run
that it starts for the first time has no folder .hydra/.
"""

import shutil
from collections.abc import Container
from dataclasses import replace
from pathlib import Path

from bnexp.data.images import Contents
from bnexp.data.load import load_data, show_contents
from bnexp.runs.cache import open_cache
from bnexp.runs.config import ConfigError, RunConfig, require
from bnexp.runs.console import command, count, print_line, print_once
from bnexp.runs.directory import SWEEP, Compilation, clear_progress, record_paths
from bnexp.runs.distributed import rank
from bnexp.runs.files import clear_parts
from bnexp.runs.lock import Lock
from bnexp.runs.parse import located, paths_in
from bnexp.runs.record import RunRecord, find_runs, fits
from bnexp.sweeps.executor_config import ExecutorConfig
from bnexp.sweeps.job import Job
from bnexp.sweeps.run import comparing, run_sweep
from bnexp.sweeps.slurm import live_runs
from bnexp.sweeps.stacks import plan_sweep
from bnexp.sweeps.sweep_record import read_executor, read_jobs, write_jobs
from bnexp.training.check import check
from bnexp.training.device import decide_compilation
from bnexp.training.member import check_facts, check_start

Runs = dict[str, RunRecord]  # by the digest of their configurations


def clear_partial_files(directory: Path, runs: Runs) -> None:
    """Remove half-written files from a directory and from its complete runs, and the saved states of complete runs.

    Unfinished runs are left as they are.
    """
    clear_parts(directory)
    for run in runs.values():
        if run.complete:
            clear_progress(run.directory)


def runs_of(directory: Path) -> Runs:
    """Return the runs in and below the directory of a run or a sweep, by their digests."""
    return {run.digest: run for run in find_runs([directory])}


def remaining_jobs(jobs: list[Job], runs: Runs) -> list[Job]:
    """Return the jobs whose runs are not complete, or are complete by other versions of bnexp or torch.

    Each has the decision whether it is compiled: its run's record has it, or this machine makes it. Problems of the
    compiler and of its cache are printed once. Raises ConfigError where a run began compiled and can't be compiled
    here, or its configuration requires a compiler that is missing.
    """
    done = {digest for digest, run in runs.items() if run.complete and run.same_versions}
    remaining = [job for job in jobs if job.digest not in done]
    decided = [replace(job, compilation=compilation_of(job, runs.get(job.digest))) for job in remaining]
    for problem in dict.fromkeys(job.compilation.problem for job in decided):
        if problem:
            print_once(f"{problem}: steps run uncompiled, at about half the speed")
    if any(job.compilation.compiled for job in decided) and (cache_problem := open_cache().problem):
        print_once(f"{cache_problem}: compiled code is not cached")
    return decided


def compilation_of(job: Job, run: RunRecord | None) -> Compilation:
    """Decide whether a job is compiled: as its run was, or, without a run, by its configuration and this machine.

    Raises ConfigError where the run was compiled and can't be here, and for compile=true without a working compiler.
    """
    if run and not run.record.get("compiled"):
        return Compilation()
    compilation = decide_compilation(job.config)
    if run and not compilation.compiled:
        why = compilation.problem or "its configuration isn't to be compiled"
        raise ConfigError(f"{run.directory} began compiled and cannot be resumed so here: {why}")
    return compilation


def submitted_runs(directory: Path, executor: ExecutorConfig) -> dict[str, Path]:
    """Return the runs in a directory that an earlier command submitted to Slurm and that go on: digest → directory.

    Raises ConfigError where there are such and this command's executor is another one, which can't join them, and where
    Slurm doesn't say.
    """
    live = live_runs(directory)
    if live and executor.name != "slurm":
        raise ConfigError(f"{directory} is in use: jobs of Slurm train {count(len(live), 'run')} of it, or will")
    return live


def check_directory(
    directory: Path,
    jobs: list[Job],
    numbered: bool,
    own_names: bool,
    live: Container[str] = (),
    elsewhere: bool = False,
) -> Runs:
    """Return the runs of these jobs that a directory holds already.

    numbered: the name of a job's directory may contain its position in the sweep. own_names: the user chose the names
    (hydra.sweep.subdir). live: the digests of runs that jobs of a cluster train. elsewhere: the runs train on other
    machines. Raises ConfigError if the directory holds a run that is none of the jobs, or one that can't be resumed.
    Values that are added to a sweep change its positions and names. Then ConfigError is also raised for a run under its
    earlier position, if `numbered`, and for an unfinished run under its earlier name, unless `own_names`; a finished
    run may keep its earlier name.
    """
    runs = runs_of(directory)
    by_digest = {job.digest: job for job in jobs}
    if runs.keys() - by_digest.keys():
        raise ConfigError(f"{directory} holds another run already: choose another directory")
    for run in in_order_of_data(runs):
        job, name = by_digest[run.digest], run.directory.name
        check_resumable(run, job.config, directory, run.digest in live, elsewhere)
        if run.directory == directory:
            continue
        if numbered and run.job != job.number and (str(run.job) in name if own_names else name == str(run.job)):
            raise ConfigError(f"{directory} names its runs by number, and these have others: choose another directory")
        if not own_names and name != job.directory.name and not run.complete:
            again = command("resume", directory)
            raise ConfigError(
                f"{run.directory} was interrupted and is {job.directory.name} in this sweep: {again} first"
            )
    return runs


def remove_superseded_runs(directory: Path, jobs: list[Job]) -> None:
    """Delete the run directories below `directory` that are named as a job's, but whose run is none of these jobs'.

    Such runs belong to an older version of a claim's sweep, for example.
    """
    digests, names = {job.digest for job in jobs}, {job.directory.name for job in jobs}
    for run in runs_of(directory).values():
        if run.digest not in digests and run.directory.name in names:
            shutil.rmtree(run.directory)


def check_runs(configs: list[RunConfig]) -> list[Contents]:
    """Check all configurations before the first run starts, and print the lines that the checks return.

    Their data sets are loaded, and downloaded if files are missing. Returns the `Contents` of each folder of images
    among them. Raises ConfigError for a run that can't be trained here.
    """
    lines, contents = dict[str, None](), dict[str, Contents | None]()
    distinct = {repr(replace(config, seed=0)): config for config in configs}
    for config in sorted(distinct.values(), key=lambda config: str(config.dataset)):  # each data set is read once
        lines |= dict.fromkeys(check(config))
        contents[str(config.dataset)] = load_data(config.dataset).contents
    for line in lines:
        print_line(line)
    return [folder for folder in contents.values() if folder]


# ---- the command


def resume(directory: Path, moved: dict[str, str], hint: bool = False) -> bool:
    """Lock the directory of a run or a sweep, train its remaining runs, and print how many it has or that none remains.

    Returns True, since all have ended then.

    moved: new paths of folders that the runs read, by key (dataset.root); they are recorded. hint: as in `run_sweep`.
    Raises ConfigError where the directory is in use or its runs can't be resumed, SweepError if runs failed, and
    Interrupted after a signal.
    """
    with Lock(directory):
        ended = resume_locked(directory, moved)
        is_sweep = (directory / SWEEP).exists()
        print_line(f"{directory} is finished: {ended}{comparing(directory) if hint and is_sweep else ''}")
    return True


def resume_locked(directory: Path, moved: dict[str, str]) -> str:
    """Train the remaining runs in a directory; return the number of runs and what was done, or that no run remains."""
    jobs, executor = read_jobs(directory), read_executor(directory)
    live = submitted_runs(directory, executor)
    check_moves(directory, jobs, moved)
    jobs = [replace(job, config=located(job.config, moved)) for job in jobs]
    runs, planned = runs_of(directory), {job.digest: job.config for job in jobs}
    for run in in_order_of_data(runs):
        if run.digest in planned:
            check_resumable(run, planned[run.digest], directory, run.digest in live, executor.is_cluster)
    if moved:
        record_moves(directory, jobs, executor, runs)
    clear_partial_files(directory, runs)
    remaining = remaining_jobs(jobs, runs)
    if not remaining:
        return "no run remains"
    remaining = in_their_directories(remaining, {digest: run.directory for digest, run in runs.items()} | live)
    for job in sorted(remaining, key=lambda job: str(job.config.dataset)):  # each data set is read once
        data = load_data(job.config.dataset, directory)
        check_facts(job.config, job.directory, data, job.compilation.compiled, executor.is_cluster)
    for contents in check_runs([job.config for job in remaining]):
        show_contents(contents)
    run_sweep(replace(plan_sweep(remaining, executor, directory), live=frozenset(live)))
    resumed = sum(job.digest in runs for job in remaining)
    counts = {"finished before": len(jobs) - len(remaining), "resumed": resumed, "started": len(remaining) - resumed}
    parts = ", ".join(f"{number} {what}" for what, number in counts.items() if number)
    return f"{count(len(jobs), 'run')} ({parts})"


def in_their_directories(jobs: list[Job], directories: dict[str, Path]) -> list[Job]:
    """Return the jobs with the directories of their runs, by digest, which may have other names than the jobs'."""
    return [replace(job, directory=directories.get(job.digest, job.directory)) for job in jobs]


def check_moves(directory: Path, jobs: list[Job], moved: dict[str, str]) -> None:
    """Raise ConfigError where a new path is no folder, or its key does not stand for exactly one folder of the jobs."""
    for key, path in moved.items():
        number = len({paths_in(job.config)[key] for job in jobs if key in paths_in(job.config)})
        require(number > 0, key, path, f"a key that the runs of {directory} have a folder for")
        if number > 1:
            raise ConfigError(
                f"{key}={path} is not allowed: the runs of {directory} read {number} different folders by this key, "
                "which one folder cannot replace: move them back"
            )
        fits = Path(path).exists() if key == "init_from" else Path(path).is_dir()
        require(fits, key, path, "an existing file or folder" if key == "init_from" else "an existing folder")


def record_moves(directory: Path, jobs: list[Job], executor: ExecutorConfig, runs: Runs) -> None:
    """Write the new paths of the folders that the runs read to sweep.json and to every run's run.json."""
    if (directory / SWEEP).exists():
        write_jobs(directory, jobs, executor)
    for job in jobs:
        if run := runs.get(job.digest):
            record_paths(run.directory, job.config)


def in_order_of_data(runs: Runs) -> list[RunRecord]:
    """Sort runs by data set, so that each data set is loaded once."""
    return sorted(runs.values(), key=lambda run: str(run.config["dataset"]))


def check_resumable(
    run: RunRecord, config: RunConfig, directory: Path, live: bool = False, elsewhere: bool = False
) -> None:
    """Raise ConfigError where a run can't be resumed with the same result.

    The versions of bnexp and torch, the data and the checkpoint of init_from have to be those it began with; for an
    unfinished run also the device and its other recorded facts (`check_facts`), except its compilation, and no other
    process may be training it. A complete run is checked, too, since runs may be added to its arm; its init_from may be
    missing. directory: the directory of the run or sweep. live: whether a job of a cluster trains it, or will, which is
    no other process then. elsewhere: as in `check_facts`. `bnexp train`, `compare` and `resume` check this before they
    train anything.
    """
    if not run.same_versions:
        made = ", ".join(f"{name} {run.record['packages'].get(name)}" for name in ("bnexp", "torch"))
        raise ConfigError(f"{run.directory} was made by {made}: install these to resume it, or start it anew")
    data = load_data(config.dataset, directory)
    if not fits(run.record, {"dataset": {"sha256": str}}) or run.record["dataset"]["sha256"] != data.checksum:
        raise ConfigError(f"{run.directory} was made with other data: choose another directory")
    if run.complete:
        check_start(config, run.directory, run.record, may_be_missing=True)
    else:
        check_facts(config, run.directory, data, elsewhere=elsewhere)
        if not live and rank() == 0:
            Lock(run.directory).release()
