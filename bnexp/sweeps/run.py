"""Run a sweep or a single run: start its stacks on an executor, start lost ones again, show the progress."""

from collections.abc import Callable
from contextlib import suppress

from bnexp.runs.console import count, harmless, print_line
from bnexp.runs.record import complete_run, opened_at, write_failure
from bnexp.sweeps.display import Display, displayed
from bnexp.sweeps.executor import Executor, InlineExecutor
from bnexp.sweeps.job import Failure, Failures, Job, StackOfJobs
from bnexp.sweeps.processes import ProcessExecutor
from bnexp.sweeps.slurm import SlurmExecutor
from bnexp.sweeps.stacks import SweepPlan
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
}


def run_sweep(plan: SweepPlan, executor: Executor | None = None) -> None:
    """Train every stack of the plan to its end. executor: by default the one that the plan names.

    Raises SweepError if runs failed. After a signal, the runs are saved so that they can be resumed; then it raises
    Interrupted.
    """
    executor = executor or EXECUTORS[plan.executor](plan)
    jobs = {job.number: job for stack in plan.stacks for job in stack}
    if not plan.alone:
        print_line(str(plan))
    with displayed(Display(list(jobs.values()))) as display:
        sweep = Sweep(executor, display)
        try:
            sweep.train(plan.stacks)
        except KeyboardInterrupt:
            display.close_interrupted()
            if not plan.alone:
                with harmless():
                    print_line(f"interrupted: {display.tally()}")
            raise
    raise_failures(sweep.failures, jobs, plan.alone)


class Sweep:
    """The training of a sweep's stacks on an executor, and the failures of their runs by job number."""

    def __init__(self, executor: Executor, display: Display) -> None:
        self.executor, self.display = executor, display
        self.failures: Failures = {}
        self.retried: set[int] = set()  # numbers of jobs whose stack was lost once

    def train(self, stacks: list[StackOfJobs]) -> None:
        """Train until all stacks have ended; failures are collected, not raised. Raises Interrupted after a signal."""
        remaining = len(stacks)
        with StopRequest() as stop:
            try:
                for stack in stacks:
                    self.executor.start(stack)
                while remaining and not stop.requested():
                    for ended in self.executor.poll():
                        remaining -= 1
                        self.failures |= ended.failures or {}
                        for part in self.halves(ended.stack, ended.lost) if ended.lost else []:
                            self.executor.start(part)
                            remaining += 1
            finally:
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
            print_line(f"{lost}: starting {count(len(stack), 'run')} again as {count(len(parts), 'stack')}")
            return parts
        for job in stack:
            if complete_run(job.directory) is None:
                self.failures[job.number] = Failure(lost)
                if opened_at(job.directory) is not None:
                    with suppress(OSError):
                        write_failure(job.directory, lost)
        return []


def raise_failures(failures: Failures, jobs: dict[int, Job], alone: bool) -> None:
    """Raise SweepError if there are failures; it names the runs, unless there is one run alone, and the reasons."""
    if alone and failures:
        [failure] = failures.values()
        raise SweepError(failure.text, failure.status)
    if failures:
        texts = "; ".join(f"{jobs[number].title} ({failures[number].text})" for number in sorted(failures))
        raise SweepError(f"{len(failures)} of {len(jobs)} runs failed: {texts}")
