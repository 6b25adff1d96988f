"""A sweep as Hydra's launcher has it: runs of the same graph train as one stack, stacks on worker processes.

Hydra makes each run's directory, record, callbacks and JobReturn as if it ran alone: the jobs of a stack nest, each
composed inside the task of the one before, and the stack trains inside the last.
"""

import logging
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, run_job, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from bnexp.cluster import make_executor
from bnexp.console import describe
from bnexp.messages import explain
from bnexp.plan import launch_here
from bnexp.running import Sweep
from bnexp.sweep import Job, StackOfJobs, SweepPlan
from bnexp.train import Member, open_member, outcome_there, train_together
from bnexp.workers import Closed, Emit, Opened, Reporter

Returns = dict[int, JobReturn]  # by the job's number


class StackTrainer:
    """Trains a stack of jobs, in this process or in a worker's. `config`: of the sweep."""

    def __init__(self, context: HydraContext, config: DictConfig) -> None:
        self.context, self.config = context, config

    def __call__(self, stack: StackOfJobs, emit: Emit) -> Returns:
        setup_globals()
        JobRuntime.instance().set("name", self.config.hydra.job.name)
        nest = Nest(self, stack, emit)
        nest.enter(0)
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return nest.returns

    def job_config(self, job: Job) -> DictConfig:
        """As Hydra's own launcher makes it."""
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
            task_function=lambda _: self.task(depth),
            config=self.trainer.job_config(self.stack[depth]),
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )

    def task(self, depth: int) -> str:
        """Hydra's task of one job: open its directory, train it with those further in, log what became of it."""
        job = self.stack[depth]
        self.entered.add(depth)
        whole: Any = HydraConfig.instance().cfg
        outcome: dict[str, Any] | Exception | None = None
        try:
            place = launch_here()
            outcome = outcome_there(job.config, place.directory)
            if outcome is not None:
                self.emit(Closed(job.number, place.directory, outcome))
            else:
                member = open_member(job.config, place, len(self.stack))
                self.members[job.number] = member
                self.emit(Opened(job.number, place.directory, member.start.step))
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


def launch(context: HydraContext, config: DictConfig, plan: SweepPlan) -> list[JobReturn]:
    """A sweep's runs, by what Hydra's launcher is handed. Raises SweepError where some failed."""
    settings = config.hydra
    directory = Path(settings.sweep.dir)
    directory.mkdir(parents=True, exist_ok=True)
    submit = plan.submit
    executor = submit and make_executor(submit, directory / ".submitit", dict(settings.launcher.submit_with))
    sweep = Sweep(StackTrainer(context, config), plan, executor)
    sweep.run()
    failed = {n: r._return_value for n, r in sweep.returns.items() if r.status is not JobStatus.COMPLETED}
    sweep.raise_failures(failed)
    return [sweep.returns[number] for number in sorted(sweep.returns)]
