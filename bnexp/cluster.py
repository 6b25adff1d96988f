"""Stacks as jobs of a cluster, through submitit: stacks within a node, jobs across nodes."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from bnexp.cache import UnsafeError, cache_directory, make_private, reason
from bnexp.config import ConfigError
from bnexp.workers import Emit, Event, Train


@dataclass(frozen=True)
class Recorded:
    """Trains a stack far from any terminal; what it would have told comes with the result."""

    train: Train

    def __call__(self, stack: Any) -> tuple[list[Event], Any]:
        events: list[Event] = []
        return events, self.train(stack, events.append)

    def checkpoint(self, stack: Any) -> Any:
        """For submitit, as a job's time is over or it is preempted: put into the queue again, it goes on."""
        from submitit.helpers import DelayedSubmission  # noqa: PLC0415 - an extra

        return DelayedSubmission(self, stack)


def run_jobs(
    train: Train, stacks: list[Any], executor: Any, emit: Emit, died: Callable[[Any, str], list[Any]]
) -> list[Any]:
    """Results of all stacks. A job that dies is handed to `died`, which returns the stacks to try again."""
    results = []
    while stacks:
        with executor.batch():
            jobs = [executor.submit(Recorded(train), stack) for stack in stacks]
        again: list[Any] = []
        try:
            for job, stack in zip(jobs, stacks, strict=True):
                error = job.exception()
                if error is not None:
                    again += died(stack, f"job {job.job_id} died ({type(error).__name__})")
                    continue
                events, result = job.result()
                for event in events:
                    emit(event)
                results.append(result)
        except BaseException:
            for job in jobs:
                job.cancel(check=False)
            raise
        stacks = again
    return results


def folder_for_jobs(directory: Path) -> Path:
    """Where submitit keeps what it sends: beside a sweep's runs, or in the user's own directory where somebody else can
    write there, since what is found is unpickled. Raises ConfigError.
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


def make_executor(cluster: str, folder: Path, parameters: dict[str, Any]) -> Any:
    import submitit  # noqa: PLC0415 - an extra

    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    try:
        executor.update_parameters(name="bnexp", **parameters)
    except (NameError, TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"hydra.launcher.submit_with={parameters} is not allowed: {error}") from error
    return executor
