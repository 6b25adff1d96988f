"""Train a stack of jobs in this process: every executor calls `train_stack`."""

import logging

from bnexp.runs.config import ConfigError
from bnexp.runs.console import describe
from bnexp.runs.log import run_log
from bnexp.sweeps.job import Failures, Job, StackOfJobs, failure_of
from bnexp.training.compiled import CompileError
from bnexp.training.loop import train_together
from bnexp.training.member import Member, create_or_reopen_run, summary_of_complete_run


def train_stack(stack: StackOfJobs) -> Failures:
    """Create or reopen each job's run, train all as one stack, and return the failures by job number.

    Complete runs by the installed versions stay as they are. A run that can't be opened does not stop the others. Runs
    that are resumed from different steps train one after another. Raises Interrupted after a signal, once all runs are
    closed.
    """
    failures: Failures = {}
    members: list[tuple[Job, Member]] = []
    for job in stack:
        try:
            if summary_of_complete_run(job.config, job.directory) is None:
                members.append((job, open_job(job, len(stack))))
        except Exception as error:  # an error in one directory does not stop the other runs
            failures[job.number] = failure_of(error)
    try:
        if members:
            with run_log([job.directory for job, _ in members], verbose_of(stack[0])):
                train_together([member for _, member in members])
    finally:
        for job, member in members:
            write_outcome(job, member)
    errors = {job.number: member.outcome for job, member in members if isinstance(member.outcome, Exception)}
    return failures | {number: failure_of(error) for number, error in errors.items()}


def open_job(job: Job, stack_size: int) -> Member:
    """Create or reopen the job's run, and write its folder .hydra/.

    stack_size: the number of jobs in its stack. Raises ConfigError if the directory is in use or holds another run, or
    facts that the run depends on have changed, and OSError where files can't be read or written.
    """
    with run_log([job.directory], verbose_of(job)):
        member = create_or_reopen_run(job.config, job.launch, stack_size)
        try:
            if job.record is not None:
                job.record.write(job)
        except BaseException:
            member.release()
            raise
    return member


def verbose_of(job: Job) -> object:
    """Return the job's `hydra.verbose` (as in `run_log`), or False where it has no record of Hydra's settings."""
    return job.record.hydra["verbose"] if job.record else False


def write_outcome(job: Job, member: Member) -> None:
    """Write a line to a run's log with its result or its error; nothing where it has neither."""
    logger, outcome = logging.getLogger("bnexp"), member.outcome
    with run_log([job.directory], verbose_of(job)):
        if isinstance(outcome, Exception):
            expected = isinstance(outcome, ConfigError | OSError | CompileError)  # its message suffices
            logger.error("%s failed: %s", job.title, outcome, exc_info=None if expected else outcome)
        elif outcome is not None:
            logger.info(describe(outcome))
