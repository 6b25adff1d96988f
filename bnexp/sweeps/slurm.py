"""The executor that submits stacks as arrays of jobs of Slurm, by its commands sbatch, squeue, sacct and scancel.

The tasks and their results are files in the sweep's directory (`bnexp.sweeps.slurm_task`), which all nodes share. A
driver that ends leaves its jobs to the next one, which joins them.
"""

import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from bnexp.runs.config import ConfigError, require
from bnexp.runs.console import count, log_line, print_line, print_once
from bnexp.runs.files import write_whole
from bnexp.sweeps.executor import Ended, last_line
from bnexp.sweeps.executor_config import ExecutorConfig
from bnexp.sweeps.job import Failure, Failures, StackOfJobs
from bnexp.sweeps.slurm_task import (
    FOLDER,
    Progress,
    array_path,
    id_path,
    progress_path,
    read_digests,
    read_directories,
    read_progress,
    write_tasks,
)
from bnexp.sweeps.stacks import SweepPlan, Task, threads_of

POLL = 0.2  # seconds between readings of the results
ASK_EVERY = 2.0  # seconds between questions to Slurm
GRACE = 5.0  # seconds in which a result may still appear, or a job may be queued again, after a job has ended
SLOW = 60.0  # the same for a job that ended well, whose result a network's file system may show late
SUBMIT_EVERY = 30.0  # seconds between attempts, where Slurm accepts no more jobs
CLOSING = 60.0  # seconds in which cancelled jobs close their runs
WARNING = 120  # seconds before a job's time is over, when it is told to close its runs
LEAST_MINUTES = 10
MISSING = 127  # status of a command that isn't there
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE"}
ENDED |= {"PREEMPTED", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"}
NOT_ITS_FAULT = {"PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "TIMEOUT"}  # if the cluster doesn't queue such jobs again
MOST_RESTARTS = 10  # of a run after such an end
USUAL = {"None", "Priority", "Resources", "BeginTime", "Cleaning", "NodeDown", "Prolog"}  # reasons why a job waits


class UnreachableError(ConfigError):
    """The error raised where Slurm doesn't answer."""


@dataclass(frozen=True)
class State:
    """What Slurm says of a task: its state, why it waits or ended, and how often it was queued again."""

    name: str
    reason: str = "None"
    restarts: int = 0


@dataclass
class Submitted:
    """A task that was submitted.

    array, index: the name of its array's file and its place there. restarts: how often it was seen to be queued again.
    ended: when Slurm first said that it had ended, in seconds of a monotonic clock.
    """

    task: Task
    array: str
    index: int
    restarts: int = 0
    ended: float | None = None


class SlurmExecutor:
    """An executor that submits tasks as arrays of jobs of Slurm, and joins those that an earlier driver left.

    Lost stacks are returned as such. What a lost job had not begun is submitted again.
    """

    def __init__(self, plan: SweepPlan) -> None:
        self.plan, self.folder = plan, plan.directory.absolute() / FOLDER
        self.waiting: list[StackOfJobs] = []
        self.tasks: dict[str, Submitted] = {}  # by Slurm's id of a task, 12_3
        self.asked_at = self.submitted_at = -SUBMIT_EVERY
        self.joined, self.largest = False, 0  # the most tasks of an array that Slurm accepts
        self.reasons: set[str] = set()  # why jobs wait, as far as it was printed
        self.restarts: Counter[int] = Counter()  # job number → ends that were not its fault

    def start(self, stack: StackOfJobs) -> None:
        """Append a stack to those that are submitted at the next poll."""
        self.waiting.append(stack)

    def poll(self) -> list[Ended]:
        """Submit what waits, ask Slurm for the state of all jobs, and return the stacks that have ended."""
        self.submit()
        began = time.monotonic()
        ended = [
            part for name in list(self.tasks) if self.is_whole(name) for part in self.close(name, State("COMPLETED"))
        ]
        if time.monotonic() > self.asked_at + ASK_EVERY:
            ended += self.ask()
            self.asked_at = time.monotonic()
        if not ended:
            time.sleep(max(POLL, 4 * (time.monotonic() - began)))  # the results of many jobs take a while to read
        return ended

    def cancel(self) -> None:
        """Cancel all jobs and wait until they have closed their runs, for CLOSING seconds at most."""
        self.waiting.clear()
        arrays, until = {name.partition("_")[0] for name in self.tasks}, time.monotonic() + CLOSING
        while arrays and time.monotonic() < until:
            try:
                cancelled = run("scancel", *sorted(arrays)).returncode == 0
                if cancelled and all(state.name in ENDED for state in states_of(arrays).values()):
                    self.tasks.clear()
                    return
            except UnreachableError:
                pass
            time.sleep(POLL)
        if arrays:
            print_line(f"Slurm has not ended all jobs: scancel {' '.join(sorted(arrays))}")

    # ---- submit

    def submit(self) -> bool:
        """Join the jobs of an earlier driver, once, and submit the stacks that wait; return whether none waits then.

        Where Slurm can't be reached, or accepts no more jobs and some are queued, the others are submitted later.
        Raises ConfigError where none are queued.
        """
        if not self.joined:
            self.join()
        tasks = self.plan.tasks(self.waiting) if time.monotonic() > self.submitted_at + SUBMIT_EVERY else []
        while tasks:
            try:
                size = self.submit_some(tasks)
            except ConfigError as error:
                if not self.tasks and not isinstance(error, UnreachableError):
                    raise
                print_once(f"{error}: the rest ({count(len(tasks), 'job')}) is submitted later")
                self.submitted_at = time.monotonic()
                break
            tasks = tasks[size:]
            self.waiting = [stack for task in tasks for stack in task]
        return not self.waiting

    def submit_some(self, tasks: list[Task]) -> int:
        """Submit the first tasks as an array, as many as Slurm accepts, and return their number.

        Raises ConfigError where it accepts none, and UnreachableError.
        """
        size = min(len(tasks), self.largest or max_array_size())
        while True:
            try:
                self.submit_array(tasks[:size])
            except UnreachableError:
                raise
            except ConfigError:
                if size == 1:
                    raise
                size = self.largest = size // 2  # a limit on a user's jobs, perhaps
            else:
                return size

    def submit_array(self, tasks: list[Task]) -> None:
        """Write an array of tasks, submit it, and write its job id. Raises ConfigError where Slurm refuses it.

        Where sbatch fails although the array was submitted, its name tells.
        """
        array = secrets.token_hex(4)
        cores = self.plan.config.cpus or max(threads_of(stack[0]) for task in tasks for stack in task)
        seconds = max(sum(map(self.plan.duration, task)) for task in tasks)
        command = sbatch(self.plan.config, self.folder, array, len(tasks), cores, seconds)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tasks(array_path(self.folder, array), tasks, cores)
        done = run(*command, stdin=script(self.plan.config, self.folder, array))
        name = id_by_name(array) if done.returncode else last_line(done.stdout).partition(";")[0]
        if not name:
            array_path(self.folder, array).unlink()
            error = UnreachableError if "contact" in done.stderr else ConfigError
            raise error(f"Slurm refused the jobs: {last_line(done.stderr)}")
        write_whole(id_path(self.folder, array), f"{name}\n")
        self.tasks |= {f"{name}_{index}": Submitted(task, array, index) for index, task in enumerate(tasks)}

    def join(self) -> None:
        """Take over the jobs that an earlier driver left in the queue, and the waiting stacks that they hold."""
        jobs = {job.digest: job for stack in self.waiting for job in stack}
        for name, (array, index, stacks) in live_tasks(self.folder).items():
            task = [[jobs[digest] for digest in stack if digest in jobs] for stack in stacks]
            if any(task):  # else all of its runs are complete
                self.tasks[name] = Submitted(task, array, index)
            taken = {job.digest for stack in task for job in stack}
            rest = [[job for job in stack if job.digest not in taken] for stack in self.waiting]
            self.waiting = [stack for stack in rest if stack]
        self.joined = True
        if self.tasks:
            log_line(f"joined {count(len(self.tasks), 'job')} of Slurm that an earlier command submitted")

    # ---- ask

    def is_whole(self, name: str) -> bool:
        """Return whether all stacks of a task have ended."""
        task = self.tasks[name]
        progress = self.progress(task)
        return progress is not None and progress.ended == len(task.task)

    def progress(self, task: Submitted) -> Progress | None:
        """Read how far a task is; None where it has not begun."""
        return read_progress(progress_path(self.folder, task.array, task.index))

    def ask(self) -> list[Ended]:
        """Ask Slurm for the state of all jobs, and return the stacks of those that have ended or are lost."""
        try:
            states = {name: state for name, state in states_of(self.tasks).items() if name in self.tasks}
        except UnreachableError as error:
            print_once(f"{error}: the jobs go on")
            return []
        for name, state in states.items():
            self.show(name, state)
        now = time.monotonic()
        for name, task in self.tasks.items():
            has_ended = name not in states or states[name].name in ENDED
            task.ended = (task.ended or now) if has_ended else None
        over = [
            (name, states.get(name, State("gone")))
            for name, task in self.tasks.items()
            if task.ended is not None and now > task.ended + grace(states.get(name))
        ]
        return [part for name, state in over for part in self.close(name, state)]

    def show(self, name: str, state: State) -> None:
        """Print that a job was queued again, and, once for all jobs, each unusual reason why one waits."""
        task = self.tasks[name]
        if state.restarts > task.restarts:
            task.restarts = state.restarts
            log_line(f"job {name} was queued again, {count(state.restarts, 'time')} so far: preempted or out of time")
        if state.name == "PENDING" and state.reason not in USUAL | self.reasons:
            self.reasons.add(state.reason)
            log_line(f"jobs of Slurm wait: {state.reason} (as {name})")

    def close(self, name: str, state: State) -> list[Ended]:
        """Return how the stacks of a job that has ended did, and submit again those that it had not begun."""
        submitted = self.tasks.pop(name)
        progress = self.progress(submitted)
        done, failures = (progress.ended, progress.failures) if progress else (0, {})
        ended = [Ended(stack, failures_by_number(stack, failures)) for stack in submitted.task[:done] if stack]
        rest = [stack for stack in submitted.task[done:] if stack]
        if state.name == "CANCELLED":
            return ended + [Ended(stack, cancelled=f"job {name} was cancelled") for stack in rest]
        if state.name in NOT_ITS_FAULT and rest and self.may_restart(rest[0]):
            log_line(f"job {name} has ended ({state.name}): its remaining runs are submitted again")
            self.waiting += rest
            return ended
        begun = 1 if progress else len(rest)  # of the rest; without any progress, its process didn't start
        log = self.folder / f"{submitted.array}-{submitted.index}.log"
        why = f"job {name} was lost ({': '.join(filter(None, (state.name, last_line_of(log))))})"
        self.waiting += rest[begun:]
        return ended + [Ended(stack, lost=why) for stack in rest[:begun]]

    def may_restart(self, stack: StackOfJobs) -> bool:
        """Count a restart of a stack, and return whether it has had fewer than MOST_RESTARTS."""
        self.restarts.update(job.number for job in stack)
        return max(self.restarts[job.number] for job in stack) <= MOST_RESTARTS


def grace(state: State | None) -> float:
    """Return the seconds for which a task that has ended, without all of its results, is waited for."""
    return SLOW if state is not None and state.name == "COMPLETED" else GRACE


def failures_by_number(stack: StackOfJobs, failures: Mapping[str, Failure]) -> Failures:
    """Return the failures of the runs of a stack by job number. failures: by digest."""
    return {job.number: failures[job.digest] for job in stack if job.digest in failures}


# ---- jobs that an earlier driver left


def live_tasks(folder: Path) -> dict[str, tuple[str, int, list[list[str]]]]:
    """Return the queued and running tasks in a folder: Slurm's id → array, index, digests of the runs by stack.

    Raises UnreachableError where Slurm doesn't answer.
    """
    arrays = {id_of(folder, path.stem): path for path in folder.glob("*.jsonl")}
    alive = [name for name, state in states_of(filter(None, arrays)).items() if state.name not in ENDED]
    tasks = {array: list(read_digests(arrays[array])) for array in {name.partition("_")[0] for name in alive}}
    places = ((name, *name.partition("_")[::2]) for name in alive)
    return {name: (arrays[array].stem, int(index), tasks[array][int(index)]) for name, array, index in places}


def id_of(folder: Path, array: str) -> str:
    """Return the job id of an array, "" where it was not submitted."""
    with suppress(OSError):
        return id_path(folder, array).read_text(encoding="utf-8").strip()
    return id_by_name(array)


def live_runs(directory: Path) -> dict[str, Path]:
    """Return the runs in a sweep's directory that jobs of Slurm hold, queued or running: digest → the run's directory.

    Raises UnreachableError where there may be some and Slurm doesn't answer.
    """
    folder = directory.absolute() / FOLDER
    held = {digest: array for array, _, stacks in live_tasks(folder).values() for stack in stacks for digest in stack}
    directories = {array: read_directories(array_path(folder, array)) for array in set(held.values())}
    return {digest: directories[array][digest] for digest, array in held.items()}


def is_queued(directory: Path) -> bool:
    """Return whether jobs of Slurm hold runs of a sweep, or may, as Slurm doesn't answer or isn't on this machine."""
    folder = directory.absolute() / FOLDER
    if shutil.which("squeue") is None:
        return any(folder.glob("*.id"))
    arrays = [id_of(folder, path.stem) for path in folder.glob("*.jsonl")]
    try:
        return any(state.name not in ENDED for state in states_of(filter(None, arrays)).values())
    except UnreachableError:
        return True


# ---- Slurm's commands


def run(*command: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a command of Slurm, out of reach of this terminal's Ctrl-C, and return what it printed.

    A missing command fails with status MISSING.
    """
    try:
        return subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
            start_new_session=True,
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, MISSING, "", f"{command[0]}: {error.strerror}")


def states_of(names: Iterable[str]) -> dict[str, State]:
    """Return the state of each task of some arrays that Slurm knows; of none where there is no Slurm on this machine.

    names: ids of arrays or of their tasks. A task that has left the queue is looked up in the accounting, if there is
    one. Raises UnreachableError where Slurm doesn't answer.
    """
    names = list(names)
    arrays = sorted({name.partition("_")[0] for name in names})
    if not arrays:
        return {}
    fields = "ArrayJobID:40,ArrayTaskID:40,State:40,RestartCnt:20,Reason:200"
    asked = run("squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(arrays)}", "--Format", fields)
    if asked.returncode not in (0, MISSING) and "Invalid job id" not in asked.stderr:
        raise UnreachableError(f"Slurm can't be reached ({last_line(asked.stderr)})")
    rows = (line.split(maxsplit=4) for line in asked.stdout.splitlines())
    states = {f"{array}_{task}": State(state, why.strip(), int(again)) for array, task, state, again, why in rows}
    gone = [name for name in names if "_" in name and name not in states]
    return states | accounted(gone)


def id_by_name(array: str) -> str:
    """Return the job id of an array that Slurm knows by its name, "" where it knows none."""
    asked = run("squeue", "--noheader", "--states=all", f"--name=bnexp-{array}", "--Format=ArrayJobID:40")
    return last_line(asked.stdout)


def accounted(names: list[str]) -> dict[str, State]:
    """Return the states of tasks that have ended, from the accounting; nothing where there is none."""
    if not names or settings().get("AccountingStorageType", "/none").endswith("/none"):
        return {}
    fields = ("--noheader", "--parsable2", "--allocations", "--format=JobID,State")
    asked = run("sacct", *fields, f"--jobs={','.join(names)}")
    rows = (line.split("|") for line in asked.stdout.splitlines())
    states = {name: State(state.split()[0]) for name, state in rows if name in names}
    return {name: state for name, state in states.items() if state.name in ENDED}


def settings() -> dict[str, str]:
    """Return the configuration of Slurm, as `scontrol show config` prints it."""
    if not _settings:
        lines = run("scontrol", "show", "config").stdout.splitlines()
        pairs = (line.partition("=") for line in lines)
        _settings.update({name.strip(): value.strip() for name, _, value in pairs})
    return _settings


_settings: dict[str, str] = {}


def max_array_size() -> int:
    """Return how many tasks an array may have."""
    return max(1, int(settings().get("MaxArraySize", "1001")))


def sbatch(config: ExecutorConfig, folder: Path, array: str, tasks: int, cores: int, seconds: float) -> list[str]:
    """Return the command that submits an array. seconds: about how long its longest task takes."""
    minutes = config.timeout_min or max(LEAST_MINUTES, ceil(2 * seconds / 60))
    log = str(folder / f"{array}-").replace("%", "%%") + "%a.log"
    options = {
        "job-name": f"bnexp-{array}",
        "array": f"0-{tasks - 1}",
        "time": minutes,
        "signal": f"B:USR1@{WARNING}",
        "open-mode": "append",
        "output": log,
        "chdir": os.getcwd(),
        "export": "ALL",
        "cpus-per-task": cores,
        "mem": config.mem_gb and f"{ceil(1024 * config.mem_gb)}M",
        "gpus": config.gpus,
        "partition": config.partition,
        "account": config.account,
        "exclude": config.nodelist and ",".join(other_nodes(config.nodelist)),
    }
    return ["sbatch", "--parsable", "--requeue", *(f"--{key}={value}" for key, value in options.items() if value)]


def script(config: ExecutorConfig, folder: Path, array: str) -> str:
    """Return the script of an array: the lines of executor.setup, then the process that trains the task."""
    process = shlex.join([sys.executable, "-m", "bnexp.sweeps.slurm_task", str(folder), array])
    return f'#!/bin/bash\n{config.setup or ""}\nexec {process} "$SLURM_ARRAY_TASK_ID"\n'


def other_nodes(nodelist: str) -> list[str]:
    """Return the nodes of the cluster that are not in a list of nodes. Raises ConfigError for an unknown node.

    Slurm's own --nodelist gives a job all of these nodes, where one of them is meant.
    """
    named = set(run("scontrol", "show", "hostnames", nodelist).stdout.split())
    nodes = set(run("sinfo", "--noheader", "--Node", "--format=%N").stdout.split())
    require(bool(named) and named <= nodes, "executor.nodelist", nodelist, f"nodes of {', '.join(sorted(nodes))}")
    return sorted(nodes - named)


def last_line_of(path: Path) -> str:
    """Return the last line of a file, "" where it can't be read."""
    with suppress(OSError):
        return last_line(path.read_text(encoding="utf-8", errors="replace")[-2000:])
    return ""
