"""A sweep as Hydra's launcher has it: runs of the same graph train as one stack, stacks on worker processes.

Hydra composes each job, and each has the directory, record and log of one that runs alone.
"""

import logging
from pathlib import Path

from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, setup_globals
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from bnexp.cluster import folder_for_jobs, make_executor
from bnexp.compiled import CompileError
from bnexp.composition import resolving
from bnexp.console import describe
from bnexp.jobs import open_job, take_log
from bnexp.messages import explain
from bnexp.running import End, Sweep, train_jobs
from bnexp.runs import Launch
from bnexp.sweep import Job, StackOfJobs, SweepPlan
from bnexp.workers import Emit

Returns = dict[int, JobReturn]  # by the job's number


class StackTrainer:
    """Trains a stack of jobs, in this process or in a worker's. `config`: of the sweep."""

    def __init__(self, context: HydraContext, config: DictConfig) -> None:
        self.context, self.config = context, config

    def __call__(self, stack: StackOfJobs, emit: Emit) -> Returns:
        setup_globals()
        JobRuntime.instance().set("name", self.config.hydra.job.name)
        configs: dict[int, DictConfig] = {}  # of jobs that have a directory

        def place(job: Job) -> Launch:
            config = self.job_config(job)
            with resolving(config):  # the directory's name asks for the job's
                directory = Path(config.hydra.sweep.dir, config.hydra.sweep.subdir)
            launch = open_job(config, directory)
            configs[job.number] = config
            return launch

        ends = train_jobs(stack, place, emit)
        for job in stack:
            if job.number in configs:
                ends[job.number] = logged(configs[job.number], job, ends[job.number])
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return {job.number: job_return(job, ends[job.number]) for job in stack}

    def job_config(self, job: Job) -> DictConfig:
        """As Hydra's own launcher makes it."""
        config = self.context.config_loader.load_sweep_config(self.config, job.words)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = job.number
        return config


def logged(config: DictConfig, job: Job, end: End) -> End:
    """What became of a run, once its log has it. One whose log can't be written has failed."""
    try:
        take_log(config)  # each job opened since took it for itself
    except OSError as error:  # its directory is gone, say
        return end if isinstance(end, Exception) else error
    if isinstance(end, Exception):
        known = isinstance(end, CompileError)  # which says it all, in a line
        logging.getLogger("bnexp").error("%s failed: %s", job.title, end, exc_info=None if known else end)
    else:
        logging.getLogger("bnexp").info(describe(end))
    return end


def job_return(job: Job, end: End) -> JobReturn:
    """What Hydra's sweeper is handed; of an error its words, since not every one can cross to another process."""
    if isinstance(end, Exception):
        return JobReturn(job.words, status=JobStatus.FAILED, _return_value=RuntimeError(explain(end)[1]))
    return JobReturn(job.words, status=JobStatus.COMPLETED, _return_value=str(end["status"]))


def launch(context: HydraContext, config: DictConfig, plan: SweepPlan) -> list[JobReturn]:
    """A sweep's runs, by what Hydra's launcher is handed. Raises SweepError where some failed."""
    settings = config.hydra
    directory = Path(settings.sweep.dir)
    directory.mkdir(parents=True, exist_ok=True)
    submit = plan.submit
    executor = submit and make_executor(submit, folder_for_jobs(directory), dict(settings.launcher.submit_with))
    sweep = Sweep(StackTrainer(context, config), plan, executor)
    sweep.run()
    failed = {n: r._return_value for n, r in sweep.returns.items() if r.status is not JobStatus.COMPLETED}
    sweep.raise_failures(failed)
    return [sweep.returns[number] for number in sorted(sweep.returns)]
