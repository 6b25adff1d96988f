"""A sweep while it trains: stacks on worker processes (or here, or as a cluster's jobs), its display, its dead."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from bnexp.cluster import run_jobs
from bnexp.console import count, harmless, say
from bnexp.progress import SweepDisplay, shown
from bnexp.runs import Launch, close_interrupted, complete_run, write_failure
from bnexp.sweep import Job, StackOfJobs, SweepPlan, cuda_devices, stack_key
from bnexp.train import Member, open_member, outcome_there, train_together
from bnexp.workers import Closed, Emit, Event, Opened, Pool, Reporter, Train


class SweepError(RuntimeError):
    """Some of a sweep's runs failed; the text names them."""


End = dict[str, Any] | Exception  # of a run: its summary, or why it failed


def train_jobs(stack: StackOfJobs, place: Callable[[Job], Launch], emit: Emit) -> dict[int, End]:
    """Open each job's run where it is placed, train them as one. What became of each, by number. Raises Interrupted."""
    ends: dict[int, End] = {}
    members: dict[int, Member] = {}
    for job in stack:
        try:
            launch = replace(place(job), compilation=job.compilation)
            if ended := outcome_there(job.config, launch.directory):
                ends[job.number] = ended
                emit(Closed(job.number, launch.directory, ended))
            else:
                members[job.number] = member = open_member(job.config, launch, len(stack))
                emit(Opened(job.number, launch.directory, member.start.step))
        except Exception as error:  # one directory's trouble is not the others'
            ends[job.number] = error
    if members:
        train_together(list(members.values()), Reporter(list(members), emit))
    return ends | {number: member.outcome for number, member in members.items() if member.outcome is not None}


def kind_of(stack: StackOfJobs) -> tuple[str, int]:
    """Stacks of the same kind share a compiled step."""
    return stack_key(stack[0].config, stack[0].compilation.compiled), len(stack)


class Sweep:
    """The runs of a sweep while they train. `trainer` returns a value for each job's number; `dead`: jobs that have
    none, since what trained them died, and how. `executor`: submitit's, where stacks are jobs of a cluster.
    """

    def __init__(self, trainer: Train, plan: SweepPlan, executor: Any = None) -> None:
        self.trainer, self.plan, self.executor = trainer, plan, executor
        self.jobs = {job.number: job for stack in plan.stacks for job in stack}
        self.directories: dict[int, Path] = {}
        self.retried: set[int] = set()
        self.returns: dict[int, Any] = {}
        self.dead: dict[int, str] = {}

    def run(self) -> None:
        """Raises Interrupted once the workers have closed their runs."""
        say(str(self.plan))
        with shown(SweepDisplay(list(self.jobs.values()))) as self.display:
            self.train(self.plan.stacks)

    def train(self, stacks: list[StackOfJobs]) -> None:
        if self.plan.here:
            for stack in stacks:
                self.returns |= self.trainer(stack, self.hear)
            return
        if self.executor is not None:
            for returns in run_jobs(self.trainer, stacks, self.executor, self.hear, self.died):
                self.returns |= returns
            return
        pool = Pool(self.trainer, self.hear, self.died, kind_of)
        try:
            for returns in pool.run(stacks, self.plan.workers, cuda_devices(stacks[0][0].config)):
                self.returns |= returns
        except KeyboardInterrupt:
            for number, directory in self.directories.items():
                with suppress(OSError):
                    close_interrupted(directory, self.display.step_of(number))
            with harmless():
                say(f"interrupted: {self.display.done()}")
            raise

    def hear(self, event: Event) -> None:
        if isinstance(event, Opened):
            self.directories[event.job] = event.directory
        with harmless():
            self.display.hear(event)

    def died(self, stack: StackOfJobs, how: str) -> list[StackOfJobs]:
        """A worker died with this stack: it is tried once more, in halves. Where that is the second time, it failed."""
        found = {job.number: self.directories.get(job.number) for job in stack}
        if self.retried.isdisjoint(found):
            self.retried.update(found)
            with harmless():
                self.display.restart(list(found))
            half = -(-len(stack) // 2)
            parts = [part for part in (stack[:half], stack[half:]) if part]
            say(f"{how}: starting {count(len(stack), 'run')} again as {count(len(parts), 'stack')}")
            return parts
        for number, place in found.items():
            if place and complete_run(place):  # it was over before
                continue
            self.dead[number] = how
            self.hear(Closed(number, place or Path(), {"status": "failed", "error": how}))
            if place:
                with suppress(OSError):
                    write_failure(place, how)
        return []

    def raise_failures(self, failed: dict[int, object]) -> None:
        """`failed`: why, by the job's number. Raises SweepError."""
        every = sorted({**failed, **self.dead}.items())
        if every:
            words = "; ".join(f"{self.jobs[number].title} ({why})" for number, why in every)
            raise SweepError(f"{len(every)} of {len(self.jobs)} runs failed: {words}")
