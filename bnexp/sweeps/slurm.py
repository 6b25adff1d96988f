"""The executor that submits stacks as arrays of jobs of Slurm, by its commands sbatch, squeue, sacct and scancel.

The tasks and their results are files in the sweep's directory (`bnexp.sweeps.slurm_task`), which all nodes share. A
driver that ends leaves its jobs to the next one, which joins them.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from bnexp.runs.config import ConfigError, require
from bnexp.runs.console import count, log_line, print_once
from bnexp.runs.files import write_whole
from bnexp.sweeps.executor import Ended
from bnexp.sweeps.executor_config import ExecutorConfig
from bnexp.sweeps.job import Failures, StackOfJobs
from bnexp.sweeps.slurm_task import (
    FOLDER,
    Progress,
    array_path,
    id_path,
    progress_path,
    read_digests,
    read_progress,
    write_tasks,
)
from bnexp.sweeps.stacks import SweepPlan, Task, threads_of

POLL = 0.2  # seconds between readings of the results
ASK_EVERY = 2.0  # seconds between questions to Slurm
GRACE = 5.0  # seconds in which a result may still appear, or a job may be queued again, after a job has ended
SUBMIT_EVERY = 30.0  # seconds between attempts, where Slurm accepts no more jobs
CLOSING = 60.0  # seconds in which cancelled jobs close their runs
WARNING = 120  # seconds before a job's time is over, when it is told to close its runs
LEAST_MINUTES = 10
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY", "DEADLINE"}
ENDED |= {"PREEMPTED", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"}
USUAL = {"None", "Priority", "Resources", "BeginTime", "Cleaning", "NodeDown", "Prolog"}  # reasons why a job waits


@dataclass(frozen=True)
class State:
    """What Slurm says of a task: its state, why it waits or ended, and how often it was queued again."""

    name: str
    reason: str = "None"
    restarts: int = 0


@dataclass
class Submitted:
    """A task that was submitted.

    number, index: those of its array's file and its place there. restarts: how often it was seen to be queued again.
    ended: when Slurm first said that it had ended, in seconds of a monotonic clock.
    """

    task: Task
    number: int
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
        self.joined = False

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
        if not self.tasks:
            return
        arrays = {name.partition("_")[0] for name in self.tasks}
        run("scancel", *sorted(arrays))
        until = time.monotonic() + CLOSING
        while time.monotonic() < until and any(state.name not in ENDED for state in states_of(arrays).values()):
            time.sleep(POLL)
        self.tasks.clear()

    # ---- submit

    def submit(self) -> None:
        """Join the jobs of an earlier driver, once, and submit the stacks that wait.

        Where Slurm can't be reached, or accepts no more jobs and some are queued, the others are submitted later.
        Raises ConfigError where none are queued.
        """
        if not self.joined:
            self.join()
        if not self.waiting or time.monotonic() < self.submitted_at + SUBMIT_EVERY:
            return
        tasks, self.waiting = self.plan.tasks(self.waiting), []
        while tasks:
            try:
                self.submit_array(tasks[: max_array_size()])
            except ConfigError as error:
                if not self.tasks and "Unable to contact" not in str(error):
                    raise
                print_once(f"{error}: the rest ({count(len(tasks), 'job')}) is submitted later")
                self.waiting = [stack for task in tasks for stack in task]
                self.submitted_at = time.monotonic()
                return
            tasks = tasks[max_array_size() :]

    def submit_array(self, tasks: list[Task]) -> None:
        """Write an array of tasks, submit it, and write its job id. Raises ConfigError where Slurm refuses it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max(numbers_in(self.folder), default=0)
        cores = self.plan.config.cpus or max(threads_of(stack[0]) for task in tasks for stack in task)
        write_tasks(array_path(self.folder, number), tasks, cores)
        seconds = max(sum(map(self.plan.duration, task)) for task in tasks)
        command = sbatch(self.plan.config, self.folder, number, len(tasks), cores, seconds)
        done = run(*command, stdin=script(self.plan.config, self.folder, number))
        if done.returncode:
            array_path(self.folder, number).unlink()
            raise ConfigError(f"Slurm refused the jobs: {last_line(done.stderr)}")
        name = done.stdout.strip().partition(";")[0]
        write_whole(id_path(self.folder, number), f"{name}\n")
        self.tasks |= {f"{name}_{index}": Submitted(task, number, index) for index, task in enumerate(tasks)}

    def join(self) -> None:
        """Take over the jobs that an earlier driver left in the queue, and the waiting stacks that they hold."""
        self.joined = True
        jobs = {job.digest: job for stack in self.waiting for job in stack}
        for name, (number, index, stacks) in live_tasks(self.folder).items():
            task = [[jobs[digest] for digest in stack if digest in jobs] for stack in stacks]
            self.tasks[name] = Submitted(task, number, index)
            taken = {job.digest for stack in task for job in stack}
            rest = [[job for job in stack if job.digest not in taken] for stack in self.waiting]
            self.waiting = [stack for stack in rest if stack]
        if self.tasks:
            log_line(f"joined {count(len(self.tasks), 'job')} of Slurm that an earlier command submitted")

    # ---- ask

    def is_whole(self, name: str) -> bool:
        """Return whether all stacks of a task have ended."""
        task = self.tasks[name]
        return self.progress(task).ended == len(task.task)

    def progress(self, task: Submitted) -> Progress:
        """Read how far a task is."""
        return read_progress(progress_path(self.folder, task.number, task.index)) or Progress()

    def ask(self) -> list[Ended]:
        """Ask Slurm for the state of all jobs, and return the stacks of those that have ended or are lost."""
        states = {name: state for name, state in states_of(self.tasks).items() if name in self.tasks}
        for name, state in states.items():
            self.show(name, state)
        now = time.monotonic()
        for name, task in self.tasks.items():
            has_ended = name not in states or states[name].name in ENDED
            task.ended = (task.ended or now) if has_ended else None
        over = [name for name, task in self.tasks.items() if task.ended is not None and now > task.ended + GRACE]
        return [part for name in over for part in self.close(name, states.get(name, State("gone")))]

    def show(self, name: str, state: State) -> None:
        """Print that a job was queued again, and, once for all jobs, each unusual reason why one waits."""
        task = self.tasks[name]
        if state.restarts > task.restarts:
            task.restarts = state.restarts
            log_line(f"job {name} was queued again, {count(state.restarts, 'time')} so far: preempted or out of time")
        if state.name == "PENDING" and state.reason not in USUAL:
            print_once(f"jobs of Slurm wait: {state.reason} (as {name})")

    def close(self, name: str, state: State) -> list[Ended]:
        """Return how the stacks of a job that has ended did, and submit again those that it had not begun."""
        submitted = self.tasks.pop(name)
        progress = read_progress(progress_path(self.folder, submitted.number, submitted.index))
        done = progress.ended if progress else 0
        failures = (progress and progress.failures) or {}
        ended = [Ended(stack, part_of(failures, stack)) for stack in submitted.task[:done]]
        rest = submitted.task[done:]
        if state.name == "CANCELLED":
            return ended + [Ended(stack, cancelled=f"job {name} was cancelled") for stack in rest]
        begun = 1 if progress else len(rest)  # of the rest; without any progress, its process didn't start
        log = self.folder / f"{submitted.number}-{submitted.index}.log"
        why = f"job {name} was lost ({': '.join(filter(None, (state.name, last_line_of(log))))})"
        self.waiting += rest[begun:]
        return ended + [Ended(stack, lost=why) for stack in rest[:begun]]


def part_of(failures: Failures, stack: StackOfJobs) -> Failures:
    """Return the failures of the runs of a stack."""
    numbers = {job.number for job in stack}
    return {number: failure for number, failure in failures.items() if number in numbers}


# ---- jobs that an earlier driver left


def numbers_in(folder: Path) -> list[int]:
    """Return the numbers of the arrays in a folder, in order."""
    return sorted(int(path.stem) for path in folder.glob("*.jsonl") if path.stem.isdecimal())


def live_tasks(folder: Path) -> dict[str, tuple[int, int, list[list[str]]]]:
    """Return the queued and running tasks in a folder: Slurm's id → array, index, digests of the runs by stack."""
    names = {}
    for number in numbers_in(folder):
        with suppress(OSError):
            names[id_path(folder, number).read_text(encoding="utf-8").strip()] = number
    alive = [name for name, state in states_of(names).items() if state.name not in ENDED]
    stacks = {
        name: list(read_digests(array_path(folder, names[name]))) for name in {n.partition("_")[0] for n in alive}
    }
    tasks = ((name, *name.partition("_")[::2]) for name in alive)
    return {name: (names[array], int(index), stacks[array][int(index)]) for name, array, index in tasks}


def live_digests(directory: Path) -> frozenset[str]:
    """Return the digests of the runs in a sweep's directory that jobs of Slurm hold, queued or running."""
    tasks = live_tasks(directory.absolute() / FOLDER)
    return frozenset(digest for _, _, stacks in tasks.values() for stack in stacks for digest in stack)


# ---- Slurm's commands


def run(*command: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    """Run a command of Slurm and return what it printed. A missing command fails as one that refuses does."""
    try:
        return subprocess.run(command, input=stdin, capture_output=True, encoding="utf-8", errors="replace")  # noqa: PLW1510
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", f"{command[0]}: {error.strerror}")


def states_of(names: Iterable[str]) -> dict[str, State]:
    """Return the state of each task of some arrays that Slurm knows. names: ids of arrays or of their tasks.

    A task that has left the queue is looked up in the accounting, if there is one. While Slurm can't be reached, all
    tasks count as running.
    """
    names = list(names)
    arrays = sorted({name.partition("_")[0] for name in names})
    if not arrays:
        return {}
    fields = "ArrayJobID:40,ArrayTaskID:40,State:40,RestartCnt:20,Reason:200"
    asked = run("squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(arrays)}", "--Format", fields)
    if asked.returncode and "Invalid job id" not in asked.stderr:
        print_once(f"Slurm can't be reached ({last_line(asked.stderr)}): the jobs go on")
        return {name: State("RUNNING") for name in names if "_" in name}
    rows = (line.split(maxsplit=4) for line in asked.stdout.splitlines())
    states = {f"{array}_{task}": State(state, why.strip(), int(again)) for array, task, state, again, why in rows}
    gone = [name for name in names if "_" in name and name not in states]
    return states | accounted(gone)


def accounted(names: list[str]) -> dict[str, State]:
    """Return the states of tasks that have left the queue, from the accounting; nothing where there is none."""
    if not names or "AccountingStorageType" not in settings() or settings()["AccountingStorageType"].endswith("/none"):
        return {}
    asked = run(
        "sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State", f"--jobs={','.join(names)}"
    )
    rows = (line.split("|") for line in asked.stdout.splitlines())
    return {name: State(state.split()[0]) for name, state in rows if name in names}


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


def sbatch(config: ExecutorConfig, folder: Path, number: int, tasks: int, cores: int, seconds: float) -> list[str]:
    """Return the command that submits an array. seconds: about how long its longest task takes."""
    minutes = config.timeout_min or max(LEAST_MINUTES, ceil(2 * seconds / 60))
    log = str(folder / f"{number}-").replace("%", "%%") + "%a.log"
    options = {
        "job-name": "bnexp",
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


def script(config: ExecutorConfig, folder: Path, number: int) -> str:
    """Return the script of an array: the lines of executor.setup, then the process that trains the task."""
    process = shlex.join([sys.executable, "-m", "bnexp.sweeps.slurm_task", str(folder), str(number)])
    return f'#!/bin/bash\n{config.setup or ""}\nexec {process} "$SLURM_ARRAY_TASK_ID"\n'


def other_nodes(nodelist: str) -> list[str]:
    """Return the nodes of the cluster that are not in a list of nodes. Raises ConfigError for an unknown node.

    Slurm's own --nodelist gives a job all of these nodes, where one of them is meant.
    """
    named = set(run("scontrol", "show", "hostnames", nodelist).stdout.split())
    nodes = set(run("sinfo", "--noheader", "--Node", "--format=%N").stdout.split())
    require(bool(named) and named <= nodes, "executor.nodelist", nodelist, f"nodes of {', '.join(sorted(nodes))}")
    return sorted(nodes - named)


def last_line(text: str) -> str:
    """Return the last line of a text that isn't empty, "" without one."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def last_line_of(path: Path) -> str:
    """Return the last line of a file, "" where it can't be read."""
    with suppress(OSError):
        return last_line(path.read_text(encoding="utf-8", errors="replace")[-2000:])
    return ""
