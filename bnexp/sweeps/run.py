"""Run a sweep or a single run: start its stacks on an executor, start lost ones again, show the progress."""

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from bnexp.runs.console import command, count, harmless, log_line, print_line
from bnexp.runs.distributed import processes
from bnexp.runs.record import COMPLETE, complete_run, opened_at, write_failure
from bnexp.sweeps.display import Display, displayed
from bnexp.sweeps.executor import Detachable, Executor, InlineExecutor
from bnexp.sweeps.job import Failure, Failures, Job, StackOfJobs
from bnexp.sweeps.processes import ProcessExecutor
from bnexp.sweeps.ray import RayExecutor
from bnexp.sweeps.slurm import SlurmExecutor
from bnexp.sweeps.stacks import SweepPlan
from bnexp.training.member import resume_command
from bnexp.training.signals import Interrupted, StopRequest


class SweepError(RuntimeError):
    """The error raised where runs failed; its text names them and the reasons, or has the reason of a single run alone.

    status: the exit status of the command.
    """

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


EXECUTORS: dict[str, Callable[[SweepPlan], Executor]] = {
    "processes": ProcessExecutor,
    "inline": lambda plan: InlineExecutor(),
    "slurm": SlurmExecutor,
    "ray": RayExecutor,
}


def run_sweep(plan: SweepPlan, executor: Executor | None = None, hint: bool = False) -> bool:
    """Train every stack of the plan to its end, and print how a sweep ended, and how an interrupted one is resumed.

    executor: by default the one that the plan names. hint: also name the command that compares the runs. Returns False
    where the jobs were only submitted (executor.detach), else True. Raises SweepError if runs failed or were cancelled
    by others. After a signal, the runs are saved so that they can be resumed; then it raises Interrupted. After SIGHUP,
    jobs of a cluster go on.
    """
    executor = executor or EXECUTORS[plan.executor](plan)
    jobs = {job.number: job for stack in plan.stacks for job in stack}
    if not plan.alone:
        log_line(str(plan))
    if plan.config.detach and isinstance(executor, Detachable):
        submit(executor, plan)
        return False
    with displayed(Display(list(jobs.values()), plan.live)) as display:
        sweep = Sweep(executor, display)
        try:
            sweep.train(plan.stacks)
        except KeyboardInterrupt as interrupt:
            if not (isinstance(executor, Detachable) and is_hangup(interrupt)):
                display.close_interrupted()
            show_outcome(display, plan)
            print_line(f"resume it by: {way_to_resume(plan)}")
            raise
    if sweep.cancelled:
        display.close_interrupted()
    show_outcome(display, plan, hint)
    raise_failures(sweep.failures, sweep.cancelled, jobs, plan.alone)
    return True


def submit(executor: Detachable, plan: SweepPlan) -> None:
    """Submit the stacks of a plan, and print how to join them."""
    for stack in plan.stacks:
        executor.start(stack)
    while not executor.submit():
        time.sleep(1)
    print_line(f"{plan.directory}: submitted; the same command without executor.detach joins the jobs")


def show_outcome(display: Display, plan: SweepPlan, hint: bool = False) -> None:
    """Print the outcome of a sweep in a line; nothing for a single run, whose result has been printed.

    hint: also name the command that compares the runs, if there are any to compare.
    """
    with harmless():
        if not plan.alone:
            comparable = any(run.status in COMPLETE for run in display.runs.values())
            log_line(display.outcome() + (comparing(plan.directory) if hint and comparable else ""))


def comparing(directory: Path) -> str:
    """Return the end of a sweep's last line, which names the command that compares its runs."""
    return f"; compare them by: {command('report', directory)}"


def way_to_resume(plan: SweepPlan) -> str:
    """Return how a plan's run or sweep is resumed, as text."""
    if plan.config.setup:
        return "the same command, since executor.setup is not recorded"
    return resume_command(plan.directory, plan.stacks[0][0].overrides, processes())


def is_hangup(interrupt: KeyboardInterrupt) -> bool:
    """Return whether the terminal was closed."""
    return isinstance(interrupt, Interrupted) and interrupt.signum == signal.SIGHUP


class Sweep:
    """The training of a sweep's stacks on an executor, and the failures of their runs by job number.

    cancelled: why runs were cancelled by others than this command, by job number.
    """

    def __init__(self, executor: Executor, display: Display) -> None:
        self.executor, self.display = executor, display
        self.failures: Failures = {}
        self.cancelled: dict[int, str] = {}
        self.retried: set[int] = set()  # numbers of jobs whose stack was lost once

    def train(self, stacks: list[StackOfJobs]) -> None:
        """Train until all stacks have ended; failures are collected, not raised. Raises Interrupted after a signal."""
        remaining = {job.number for stack in stacks for job in stack}
        with StopRequest() as stop:
            try:
                for stack in stacks:
                    self.executor.start(stack)
                while remaining and not stop.requested():
                    for ended in self.executor.poll():
                        remaining -= {job.number for job in ended.stack}
                        self.failures |= ended.failures or {}
                        if ended.cancelled:
                            open_runs = [job for job in ended.stack if complete_run(job.directory) is None]
                            self.cancelled |= {job.number: ended.cancelled for job in open_runs}
                        for part in self.halves(ended.stack, ended.lost) if ended.lost else []:
                            self.executor.start(part)
                            remaining |= {job.number for job in part}
            finally:
                if not (isinstance(self.executor, Detachable) and stop.signum == signal.SIGHUP):
                    self.executor.cancel()
            if stop.signum is not None:
                raise Interrupted(stop.signum)

    def halves(self, stack: StackOfJobs, lost: str) -> list[StackOfJobs]:
        """Return the halves of a stack that was lost, to be trained again; none where one of its runs was lost before.

        lost: the reason why it was lost. In the second case the runs are recorded as failed, unless they are complete.
        """
        numbers = {job.number for job in stack}
        if self.retried.isdisjoint(numbers):
            self.retried |= numbers
            self.display.restart(stack)
            half = -(-len(stack) // 2)
            parts = [part for part in (stack[:half], stack[half:]) if part]
            log_line(f"{lost}: starting {count(len(stack), 'run')} again as {count(len(parts), 'stack')}")
            return parts
        for job in stack:
            if complete_run(job.directory) is None:
                self.failures[job.number] = Failure(lost)
                if opened_at(job.directory) is not None:
                    with suppress(OSError):
                        write_failure(job.directory, lost)
        return []


def raise_failures(failures: Failures, cancelled: dict[int, str], jobs: dict[int, Job], alone: bool) -> None:
    """Raise SweepError if there are failures or runs that others cancelled (number → how).

    It names the runs, unless there is one run alone, and the reasons.
    """
    stopped = {number: Failure(how) for number, how in cancelled.items()}
    failures = failures or stopped
    what = "failed" if failures is not stopped else "were interrupted"
    if alone and failures:
        [failure] = failures.values()
        raise SweepError(failure.text, failure.status)
    if failures:
        texts = "; ".join(f"{jobs[number].title} ({failures[number].text})" for number in sorted(failures))
        raise SweepError(f"{len(failures)} of {len(jobs)} runs {what}: {texts}")
