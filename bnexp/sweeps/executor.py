"""The protocol of executors, which train the stacks of a sweep, and the executor that trains in this process.

An executor only reports which stacks have ended; the progress of runs is read from their directories. To add an
executor, write its class, and register its name in `EXECUTORS` of run.py and its keys in `EXECUTOR_KEYS` of
executor_config.py.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bnexp.sweeps.job import Failures, StackOfJobs
from bnexp.sweeps.train import train_stack


@dataclass(frozen=True)
class Ended:
    """A stack that has ended.

    failures: why runs of it failed, by job number; None where the process that trained it was lost or cancelled. lost,
    cancelled: the reason of that, else None.
    """

    stack: StackOfJobs
    failures: Failures | None = None
    lost: str | None = None
    cancelled: str | None = None


def failures_of(stack: StackOfJobs, failures: Failures) -> Failures:
    """Return the failures of the runs of a stack, among others."""
    return {job.number: failures[job.number] for job in stack if job.number in failures}


def last_line(text: str) -> str:
    """Return the last line of a text that isn't empty, "" without one."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


class Executor(Protocol):
    """The protocol of an executor: it calls `train_stack` for each stack, in a process and on a machine of its choice.

    If the process is lost, `bnexp.sweeps.run` starts the stack's runs again, once.
    """

    def start(self, stack: StackOfJobs) -> None:
        """Accept a stack, which may wait in a queue."""

    def poll(self) -> list[Ended]:
        """Return the stacks that have ended since the last call.

        Where there are none, wait for a fraction of a second at most. An executor that trains in this process trains a
        stack instead.
        """

    def cancel(self) -> None:
        """Stop all stacks after closing their runs. Nothing runs any more when this returns."""


@runtime_checkable
class Detachable(Executor, Protocol):
    """The protocol of an executor whose stacks go on training when this process ends, for another one to join."""

    def submit(self) -> bool:
        """Hand over the accepted stacks; return whether all are, since a cluster may take some later."""


class InlineExecutor:
    """An executor that trains one stack after the other in this process."""

    def __init__(self) -> None:
        self.waiting: list[StackOfJobs] = []

    def start(self, stack: StackOfJobs) -> None:
        """Append a stack to the queue."""
        self.waiting.append(stack)

    def poll(self) -> list[Ended]:
        """Train the next stack and return how it ended, as a list of one.

        Raises Interrupted after a signal, once its runs are closed, and IndexError where no stack is waiting.
        """
        stack = self.waiting.pop(0)
        return [Ended(stack, train_stack(stack))]

    def cancel(self) -> None:
        """Drop the stacks that have not been trained."""
        self.waiting.clear()
