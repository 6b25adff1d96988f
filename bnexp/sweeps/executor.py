"""What trains the stacks of a sweep: the protocol of executors, and the one that trains in this process.

An executor only says which stacks have ended. How the runs are getting on is read from their directories.
"""

from dataclasses import dataclass
from typing import Protocol

from bnexp.sweeps.job import Failures, StackOfJobs
from bnexp.sweeps.train import train_stack


@dataclass(frozen=True)
class Ended:
    """A stack that an executor has done with: the runs that failed, or why whatever trained it was `lost`."""

    stack: StackOfJobs
    failures: Failures | None = None
    lost: str | None = None


class Executor(Protocol):
    """Trains stacks somewhere, by `train_stack`. `bnexp.sweeps.run` retries the stacks that are lost."""

    def start(self, stack: StackOfJobs) -> None:
        """Accept a stack; it may wait for its turn."""

    def poll(self) -> list[Ended]:
        """The stacks that have ended since the last call. Waits for a fraction of a second at most where none has,
        but for an executor that trains in this process.
        """

    def cancel(self) -> None:
        """Stop everything: stacks that train close their runs. Nothing of this executor runs when it returns."""


class InlineExecutor:
    """Trains one stack after the other in this process."""

    def __init__(self) -> None:
        self.waiting: list[StackOfJobs] = []

    def start(self, stack: StackOfJobs) -> None:
        """Put the stack behind the others."""
        self.waiting.append(stack)

    def poll(self) -> list[Ended]:
        """Train the next stack to its end. Raises Interrupted once its runs are closed."""
        stack = self.waiting.pop(0)
        return [Ended(stack, train_stack(stack))]

    def cancel(self) -> None:
        """Leave the stacks that wait."""
        self.waiting.clear()
