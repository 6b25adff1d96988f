"""Worker processes: each trains one stack after another; if one is lost, the others are not."""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from bnexp.runs.log import set_up_logging
from bnexp.runs.record import read_summary
from bnexp.runs.streams import protect_streams
from bnexp.sweeps.executor import Ended
from bnexp.sweeps.job import Failures, StackOfJobs
from bnexp.sweeps.stacks import SweepPlan, cuda_devices, stack_key
from bnexp.sweeps.train import train_stack
from bnexp.training.signals import Interrupted

GRACE = 3.0  # seconds between asking a worker to stop and killing it
POLL = 0.2
PRELOADED = ["bnexp.sweeps.train"]
LONGEST_SOCKET = 107  # bytes of the path of a Unix socket
SOCKET = "pymp-01234567/listener-01234567"  # of the process that forks the workers, in the temporary directory

Train = Callable[[StackOfJobs], Failures]


def start_method() -> str:
    """Return how worker processes are started: "forkserver" where possible, else "spawn".

    A fork of this process would copy the locks of torch's threads. A fork server has imported everything and computed
    nothing, so that all workers share one import. It is reached by a socket, whose path can be too long.
    """
    fits = len(os.fsencode(os.path.join(tempfile.gettempdir(), SOCKET))) <= LONGEST_SOCKET
    return "forkserver" if sys.platform == "linux" and fits else "spawn"


def serve(pipe: Connection, train: Train, directory: str, device: int | None, environment: dict[str, str]) -> None:
    """Train each stack that is received, and send back which runs failed: the main function of a worker process.

    SIGINT is handled by the parent, which stops its workers by SIGTERM. environment: the parent's present one; that of
    the fork server is older. device: the number of a CUDA device among those that the parent sees.
    """
    os.environ.update(environment)
    protect_streams()
    set_up_logging()
    os.chdir(directory)
    if device is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[device] if visible else str(device)
    threading.Thread(target=end_with_parent, daemon=True).start()
    with suppress(EOFError, Interrupted, OSError):  # the parent has ended, or stops its workers
        while True:
            pipe.send(train(pipe.recv()))


def end_with_parent() -> None:
    """Wait for the parent to end; then close the runs and end this process."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


class Worker:
    """A worker process as its parent sees it: the stack that it trains, and the kind for which it compiled a step."""

    def __init__(self, train: Train, device: int | None) -> None:
        self.train, self.device = train, device
        self.stack: StackOfJobs | None = None
        self.kind: object = None
        self.launch()

    def launch(self) -> None:
        """Start the process."""
        context: Any = multiprocessing.get_context(start_method())
        context.set_forkserver_preload(PRELOADED)
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, self.train, os.getcwd(), self.device, dict(os.environ))
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        start_with_sigint_blocked(self.process)
        theirs.close()

    def assign(self, stack: StackOfJobs) -> None:
        """Send a stack to the process, or to a new one where it was lost."""
        if not self.process.is_alive():
            self.launch()
        self.kind, self.stack = kind_of(stack), stack
        with suppress(OSError):  # a process that was lost meanwhile is noticed when it is read
            self.pipe.send(stack)

    def receive(self) -> Ended:
        """Return how its stack ended, once the pipe can be read."""
        assert self.stack is not None
        stack, self.stack = self.stack, None
        try:
            return Ended(stack, self.pipe.recv())
        except (EOFError, OSError):
            return Ended(stack, lost=self.exit_reason())
        except Exception:  # what was sent can't be unpickled
            self.process.kill()
            return Ended(stack, lost=self.exit_reason())

    def exit_reason(self) -> str:
        """Return why the process ended, in a line."""
        self.process.join(GRACE)
        code = self.process.exitcode or 0
        ending = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return f"the worker process was lost ({ending})"


def start_with_sigint_blocked(process: Any) -> None:
    """Start a process that has SIGINT blocked, so that its parent alone handles Ctrl-C.

    The process inherits the blocked signal from this one. A SIGINT to this process stays pending until it has started;
    that of the first worker takes seconds, in which the fork server imports torch.
    """
    resource_tracker.ensure_running()  # its start would unblock SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kind_of(stack: StackOfJobs) -> tuple[str, int]:
    """Return the kind of a stack: stacks of the same kind share a compiled step."""
    return stack_key(stack[0].config, stack[0].compilation.compiled), len(stack)


class ProcessExecutor:
    """Trains stacks on worker processes. On CUDA, the workers are distributed over the devices in turn."""

    def __init__(self, plan: SweepPlan, train: Train = train_stack) -> None:
        self.number, self.train = plan.workers, train
        self.devices = cuda_devices(plan.stacks[0][0].config)
        self.waiting: list[StackOfJobs] = []
        self.workers: list[Worker] = []

    def start(self, stack: StackOfJobs) -> None:
        """Accept a stack, which waits for a worker."""
        self.waiting.append(stack)

    def poll(self) -> list[Ended]:
        """Return the stacks that have ended."""
        self.assign()
        busy: dict[Any, Worker] = {worker.pipe: worker for worker in self.workers if worker.stack}
        return [busy[pipe].receive() for pipe in wait(list(busy), POLL)]

    def assign(self) -> None:
        """Assign a stack to each idle worker, preferably one of the kind that it has compiled."""
        while self.waiting and len(self.workers) < self.number:
            number = len(self.workers)
            self.workers.append(Worker(self.train, number % self.devices if self.devices else None))
            self.workers[-1].assign(self.waiting.pop(0))
        for worker in self.workers:
            if worker.stack is None and self.waiting:
                index = next((i for i, stack in enumerate(self.waiting) if kind_of(stack) == worker.kind), 0)
                worker.assign(self.waiting.pop(index))

    def cancel(self) -> None:
        """Ask the workers to close their runs, and kill those that make no progress with it for some seconds."""
        self.waiting.clear()
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            wait_for_runs(worker)
            worker.process.kill()
            worker.process.join()
        self.workers.clear()


def wait_for_runs(worker: Worker) -> None:
    """Wait until the process has ended, or has closed none of its runs for some seconds."""
    before, closed = -1, 0
    while worker.stack is not None and worker.process.is_alive() and closed > before:
        worker.process.join(GRACE)
        before, closed = closed, sum(read_summary(job.directory) is not None for job in worker.stack)
