"""The executor that submits stacks as jobs of Slurm, with submitit."""

import os
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

from bnexp.runs.cache import UnsafeError, cache_directory, make_private
from bnexp.runs.config import ConfigError
from bnexp.runs.files import reason
from bnexp.sweeps.executor import Ended
from bnexp.sweeps.job import ExecutorConfig, Failures, StackOfJobs
from bnexp.sweeps.stacks import SweepPlan
from bnexp.sweeps.train import train_stack

POLL = 0.5  # seconds between polls of the jobs


class Submitted:
    """What a job of Slurm calls: it trains a stack. A job that is preempted or out of time is queued again."""

    def __call__(self, stack: StackOfJobs) -> Failures:
        """Train the stack; return the failures of its runs."""
        return train_stack(stack)

    def checkpoint(self, stack: StackOfJobs) -> Any:
        """Return the submission that submitit queues when the job is preempted or out of time."""
        from submitit.helpers import DelayedSubmission  # noqa: PLC0415 - an extra

        return DelayedSubmission(self, stack)


class SlurmExecutor:
    """An executor that submits each stack as a job of Slurm.

    With executor.cluster=local, a job is a process on this machine, for tests.
    """

    def __init__(self, plan: SweepPlan) -> None:
        self.submitter = make_submitter(plan.config, folder_for_jobs(plan.directory))
        self.jobs: list[tuple[StackOfJobs, Any]] = []

    def start(self, stack: StackOfJobs) -> None:
        """Submit a stack."""
        self.jobs.append((stack, self.submitter.submit(Submitted(), stack)))

    def poll(self) -> list[Ended]:
        """Return the stacks whose jobs are done; where there are none, wait for POLL seconds."""
        done = [(stack, job) for stack, job in self.jobs if job.done()]
        if not done:
            time.sleep(POLL)
        self.jobs = [pair for pair in self.jobs if pair not in done]
        return [ended(stack, job) for stack, job in done]

    def cancel(self) -> None:
        """Cancel the jobs that are not done, without waiting for their end."""
        for _, job in self.jobs:
            job.cancel(check=False)
        self.jobs.clear()


def ended(stack: StackOfJobs, job: Any) -> Ended:
    """Return how a finished job's stack ended. job: submitit's."""
    error = job.exception()
    if error is not None:
        return Ended(stack, lost=f"job {job.job_id} was lost ({type(error).__name__})")
    return Ended(stack, job.result())


def folder_for_jobs(directory: Path) -> Path:
    """Make and return a folder for submitit's files that only the user can write to, since submitit unpickles them.

    It is in the sweep's directory, or, where other users can write to that, in the user's cache directory. Raises
    ConfigError where neither can be used safely, and OSError where the sweep's directory can't be written to, or the
    cache directory is needed and the user has no home directory.
    """
    folder = directory / ".submitit"
    try:
        make_private(folder.absolute())
    except UnsafeError as unsafe:
        folder = cache_directory() / "jobs" / sha256(os.fsencode(directory.absolute())).hexdigest()[:16]
        try:
            make_private(folder)
        except OSError as error:
            raise ConfigError(f"no jobs can be sent from {directory}: {reason(unsafe)}, {reason(error)}") from error
    return folder


def make_submitter(config: ExecutorConfig, folder: Path) -> Any:
    """Return submitit's executor for this configuration. Raises ConfigError for parameters that submitit rejects."""
    import submitit  # noqa: PLC0415 - an extra

    parameters = {"timeout_min": config.timeout_min} | config.parameters
    if config.partition is not None:
        parameters["slurm_partition"] = config.partition
    executor = submitit.AutoExecutor(folder=folder, cluster=config.cluster)
    try:
        executor.update_parameters(name="bnexp", **parameters)
    except (NameError, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"executor.parameters={config.parameters} is not allowed: {error}") from error
    return executor
