"""Train stacks in worker processes: each trains one stack after another, and the others go on where one is lost."""

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
    """Return how worker processes start: "forkserver" on Linux if its socket's path is short enough, else "spawn".

    A fork of this process would copy the locks of torch's threads. A fork server has imported everything and computed
    nothing, so that all workers share one import.
    """
    fits = len(os.fsencode(os.path.join(tempfile.gettempdir(), SOCKET))) <= LONGEST_SOCKET
    return "forkserver" if sys.platform == "linux" and fits else "spawn"


def serve(pipe: Connection, train: Train, directory: str, device: int | None, environment: dict[str, str]) -> None:
    """Train each stack that comes from the pipe, and send back its failures: the main function of a worker process.

    directory: the working directory. device: the index of a CUDA device among those that the parent sees; None on other
    devices. environment: the parent's present variables, since the fork server has older ones. SIGINT is handled by the
    parent, which stops its workers by SIGTERM.
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
    """Wait until the parent process has ended; then send SIGTERM to this one, which closes its runs."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


class Worker:
    """A worker process as its parent sees it: it is started, sent stacks, and asked how they ended.

    device: the index of its CUDA device, if any. stack: the stack that it trains; None while it is idle. kind: the kind
    (`kind_of`) of its latest stack, whose compiled step, if any, it has.
    """

    def __init__(self, train: Train, device: int | None) -> None:
        self.train, self.device = train, device
        self.stack: StackOfJobs | None = None
        self.kind: object = None
        self.launch()

    def launch(self) -> None:
        """Start the process with a pipe to it."""
        context: Any = multiprocessing.get_context(start_method())
        context.set_forkserver_preload(PRELOADED)
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, self.train, os.getcwd(), self.device, dict(os.environ))
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        start_with_sigint_blocked(self.process)
        theirs.close()

    def assign(self, stack: StackOfJobs) -> None:
        """Send a stack to the process, which is started again where it was lost."""
        if not self.process.is_alive():
            self.launch()
        self.kind, self.stack = kind_of(stack), stack
        with suppress(OSError):  # a process that was lost meanwhile is noticed when it is read
            self.pipe.send(stack)

    def receive(self) -> Ended:
        """Wait until the process sends its failures or ends, mark it as idle, and return how its stack ended."""
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
        """Return a line with the signal or the exit status by which the process ended."""
        self.process.join(GRACE)
        code = self.process.exitcode or 0
        ending = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return f"the worker process was lost ({ending})"


def start_with_sigint_blocked(process: Any) -> None:
    """Start a process in which SIGINT is blocked, so that its parent alone handles Ctrl-C.

    The process inherits the blocked signal from this one. A SIGINT to this process stays pending until the new one has
    started, which takes seconds for the first worker, since the fork server imports torch.
    """
    resource_tracker.ensure_running()  # its start would unblock SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kind_of(stack: StackOfJobs) -> tuple[str, int]:
    """Return the key and the size of a stack: stacks that are equal in both can use the same compiled step."""
    return stack_key(stack[0].config, stack[0].compilation.compiled), len(stack)


class ProcessExecutor:
    """An executor that trains stacks in worker processes.

    plan: the sweep, with the number of workers, which are distributed over the CUDA devices in turn. train: the
    function that trains a stack.
    """

    def __init__(self, plan: SweepPlan, train: Train = train_stack) -> None:
        self.number, self.train = plan.workers, train
        self.devices = cuda_devices(plan.stacks[0][0].config)
        self.waiting: list[StackOfJobs] = []
        self.workers: list[Worker] = []

    def start(self, stack: StackOfJobs) -> None:
        """Append a stack to the queue."""
        self.waiting.append(stack)

    def poll(self) -> list[Ended]:
        """Assign waiting stacks to idle workers; return the stacks that have ended; wait for POLL seconds at most."""
        self.assign()
        busy: dict[Any, Worker] = {worker.pipe: worker for worker in self.workers if worker.stack}
        return [busy[pipe].receive() for pipe in wait(list(busy), POLL)]

    def assign(self) -> None:
        """Assign a stack to each idle worker, preferably one of the kind for which it has a compiled step.

        Workers are launched until there are as many as planned.
        """
        while self.waiting and len(self.workers) < self.number:
            number = len(self.workers)
            self.workers.append(Worker(self.train, number % self.devices if self.devices else None))
            self.workers[-1].assign(self.waiting.pop(0))
        for worker in self.workers:
            if worker.stack is None and self.waiting:
                index = next((i for i, stack in enumerate(self.waiting) if kind_of(stack) == worker.kind), 0)
                worker.assign(self.waiting.pop(index))

    def cancel(self) -> None:
        """Drop the waiting stacks, ask the workers to close their runs and end, and kill those that do not."""
        self.waiting.clear()
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            wait_for_runs(worker)
            worker.process.kill()
            worker.process.join()
        self.workers.clear()


def wait_for_runs(worker: Worker) -> None:
    """Wait until the process of a busy worker has ended, or has closed no further run for GRACE seconds."""
    before, closed = -1, 0
    while worker.stack is not None and worker.process.is_alive() and closed > before:
        worker.process.join(GRACE)
        before, closed = closed, sum(read_summary(job.directory) is not None for job in worker.stack)
