"""A sweep as Hydra's launcher has it: runs of the same graph train as one stack, stacks on worker processes.

Hydra makes each run's directory, record, callbacks and JobReturn as if it ran alone: the jobs of a stack nest, each
composed inside the task of the one before, and the stack trains inside the last.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from bnexp.cluster import make_executor, run_jobs
from bnexp.config import parse
from bnexp.console import count, describe, say, tell_uncompiled
from bnexp.engine import has_compiler
from bnexp.messages import explain
from bnexp.plan import launch_here
from bnexp.progress import SweepDisplay
from bnexp.runs import clear_run, close_interrupted, write_failure
from bnexp.sweep import Job, StackOfJobs, SweepPlan, cuda_devices, stack_key
from bnexp.train import Member, open_member, train_together
from bnexp.workers import Closed, Emit, Event, Opened, Pool, Reporter

Returns = dict[int, JobReturn]  # by the job's number


class SweepError(RuntimeError):
    """Some of a sweep's runs failed; the text names them."""


@dataclass(frozen=True)
class StackTrainer:
    """Trains a stack of jobs, in this process or in a worker's."""

    context: HydraContext
    config: DictConfig  # of the sweep

    def __call__(self, stack: StackOfJobs, emit: Emit) -> Returns:
        setup_globals()
        JobRuntime.instance().set("name", self.config.hydra.job.name)
        nest = Nest(self, stack, emit)
        nest.enter(0)
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return nest.returns

    def job_config(self, job: Job) -> DictConfig:
        config = self.context.config_loader.load_sweep_config(self.config, job.words)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = job.number
        OmegaConf.set_readonly(config.hydra, True)
        return config


class Nest:
    """The jobs of a stack, each one's task inside that of the one before."""

    def __init__(self, trainer: StackTrainer, stack: StackOfJobs, emit: Emit) -> None:
        self.trainer, self.stack, self.emit = trainer, stack, emit
        self.members: dict[int, Member] = {}
        self.entered: set[int] = set()
        self.returns: Returns = {}

    def enter(self, depth: int) -> None:
        if depth == len(self.stack):
            if self.members:
                reporter = Reporter(list(self.members), self.emit)
                train_together(list(self.members.values()), reporter)
            return
        job = self.stack[depth]
        try:
            result = self.run(depth)
        except Exception as error:  # its directory can't be made, say
            result = JobReturn(status=JobStatus.FAILED, _return_value=error)
            if depth not in self.entered:
                self.enter(depth + 1)
        if result.status is JobStatus.FAILED:  # in words: not every error can cross to another process
            result._return_value = RuntimeError(explain(result._return_value)[1])
        self.returns[job.number] = result

    def run(self, depth: int) -> JobReturn:
        return run_job(
            hydra_context=self.trainer.context,
            task_function=lambda config: self.task(depth, config),
            config=self.trainer.job_config(self.stack[depth]),
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    def task(self, depth: int, config: DictConfig) -> str:
        """Hydra's task of one job: open its directory, train it with those further in, log what became of it."""
        job = self.stack[depth]
        self.entered.add(depth)
        whole: Any = HydraConfig.instance().cfg
        outcome: dict[str, Any] | Exception | None = None
        try:
            run = parse(config)
            assert run == job.config, "planned and composed alike"
            launch = launch_here()
            if job.replace:
                clear_run(launch.directory)
            member = open_member(run, launch, len(self.stack))
            self.members[job.number] = member
            self.emit(Opened(job.number, member.launch.directory))
        except Exception as error:
            outcome = error
        self.enter(depth + 1)
        configure_log(whole.hydra.job_logging, whole.hydra.verbose)  # each job further in took the log for itself
        outcome = outcome or self.members[job.number].outcome
        if isinstance(outcome, dict):
            logging.getLogger("bnexp").info(describe(outcome))
            return str(outcome["status"])
        assert outcome is not None
        logging.getLogger("bnexp").error("%s failed", job.title, exc_info=outcome)
        raise outcome


class Sweep:
    """The runs of a sweep while they train."""

    def __init__(self, context: HydraContext, config: DictConfig, plan: SweepPlan) -> None:
        self.trainer, self.plan = StackTrainer(context, config), plan
        self.jobs = {job.number: job for stack in plan.stacks for job in stack}
        self.directories: dict[int, Path] = {}
        self.retried: set[int] = set()
        self.returns: Returns = {}

    def run(self) -> list[JobReturn]:
        say(str(self.plan))
        if not has_compiler():
            tell_uncompiled()  # here: workers have no console
        Path(self.trainer.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        with SweepDisplay(list(self.jobs.values())) as self.display:
            self.train(self.plan.stacks)
        self.raise_failures()
        return [self.returns[number] for number in sorted(self.jobs)]

    def train(self, stacks: list[StackOfJobs]) -> None:
        if self.plan.here:
            for stack in stacks:
                self.returns |= self.trainer(stack, self.hear)
            return
        if self.plan.submit:
            settings = self.trainer.config.hydra
            parameters = dict(settings.launcher.submit_with)
            executor = make_executor(self.plan.submit, Path(settings.sweep.dir, ".submitit"), parameters)
            for returns in run_jobs(self.trainer, stacks, executor, self.hear, self.died):
                self.returns |= returns
            return
        pool = Pool(self.trainer, self.hear, self.died, lambda stack: (stack_key(stack[0].config), len(stack)))
        try:
            for returns in pool.run(stacks, self.plan.workers, cuda_devices(stacks[0][0].config)):
                self.returns |= returns
        except KeyboardInterrupt:
            for number, directory in self.directories.items():
                close_interrupted(directory, self.display.step_of(number))
            say(f"interrupted: {self.display.done()}")
            raise

    def hear(self, event: Event) -> None:
        if isinstance(event, Opened):
            self.directories[event.job] = event.directory
        self.display.hear(event)

    def died(self, stack: StackOfJobs, how: str) -> list[StackOfJobs]:
        """A worker died with this stack: it is tried once more, in halves. Where that is the second time, it failed."""
        found = {job.number: self.directories.pop(job.number, None) for job in stack}
        if self.retried.isdisjoint(found):
            self.retried.update(found)
            self.display.restart(list(found))
            for directory in filter(None, found.values()):
                clear_run(directory)
            half = -(-len(stack) // 2)
            parts = [part for part in (stack[:half], stack[half:]) if part]
            say(f"{how}: starting {count(len(stack), 'run')} again as {count(len(parts), 'stack')}")
            return parts
        for number, place in found.items():
            self.returns[number] = JobReturn(status=JobStatus.FAILED, _return_value=RuntimeError(how))
            self.display.hear(Closed(number, place or Path(), {"status": "failed", "error": how}))
            if place:
                write_failure(place, how)
        return []

    def raise_failures(self) -> None:
        failed = [
            f"{self.jobs[number].title} ({result._return_value})"
            for number, result in sorted(self.returns.items())
            if result.status is not JobStatus.COMPLETED
        ]
        if failed:
            raise SweepError(f"{len(failed)} of {len(self.returns)} runs failed: {'; '.join(failed)}")
