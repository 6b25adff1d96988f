"""What trains the stacks of a sweep: the protocol of executors, and the one that trains in this process.

An executor only reports which stacks have ended; the runs' directories show how the runs get on. To add one, write its
class and register its name in `EXECUTORS` of run.py and its keys in `EXECUTOR_KEYS` of job.py.
"""

from dataclasses import dataclass
from typing import Protocol

from bnexp.sweeps.job import Failures, StackOfJobs
from bnexp.sweeps.train import train_stack


@dataclass(frozen=True)
class Ended:
    """A stack that has ended: `failures` of its runs, or, where its process was lost, the reason in `lost`."""

    stack: StackOfJobs
    failures: Failures | None = None
    lost: str | None = None


class Executor(Protocol):
    """Trains stacks by `train_stack`, wherever it chooses. `bnexp.sweeps.run` retries the stacks that are lost."""

    def start(self, stack: StackOfJobs) -> None:
        """Accept a stack, which may wait in a queue."""

    def poll(self) -> list[Ended]:
        """Return the stacks that have ended since the last call.

        Where none has, wait for at most a fraction of a second, except in an executor that trains in this process.
        """

    def cancel(self) -> None:
        """Stop all stacks, whose runs are closed first. When it returns, nothing of this executor is running."""


class InlineExecutor:
    """Trains one stack after the other in this process."""

    def __init__(self) -> None:
        self.waiting: list[StackOfJobs] = []

    def start(self, stack: StackOfJobs) -> None:
        """Append a stack to the queue."""
        self.waiting.append(stack)

    def poll(self) -> list[Ended]:
        """Train the next stack to its end. Raises Interrupted after a signal, once its runs are closed."""
        stack = self.waiting.pop(0)
        return [Ended(stack, train_stack(stack))]

    def cancel(self) -> None:
        """Clear the queue."""
        self.waiting.clear()
