"""Worker processes: each trains one stack after another, and is lost alone."""

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
    """A fork of this process would copy the locks of torch's threads. Where that works, workers are forks of a process
    that has imported everything and computed nothing: one import for all workers of all sweeps. It is reached by a
    socket, whose path can be too long; then every worker imports for itself.
    """
    fits = len(os.fsencode(os.path.join(tempfile.gettempdir(), SOCKET))) <= LONGEST_SOCKET
    return "forkserver" if sys.platform == "linux" and fits else "spawn"


def serve(pipe: Connection, train: Train, directory: str, device: int | None, environment: dict[str, str]) -> None:
    """A worker process: train each stack that comes, and send back which runs failed.

    SIGINT is the business of the parent, which asks to stop by SIGTERM. `environment`: the parent's as it is now; the
    process that forks the workers has an earlier one. `device`: the number of a CUDA device among the parent's.
    """
    os.environ.update(environment)
    protect_streams()
    set_up_logging()
    os.chdir(directory)
    if device is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[device] if visible else str(device)
    threading.Thread(target=follow_parent, daemon=True).start()
    with suppress(EOFError, Interrupted, OSError):  # the parent is gone, or wants no more
        while True:
            pipe.send(train(pipe.recv()))


def follow_parent() -> None:
    """Once the parent is gone, close the runs and end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


class Worker:
    """A worker process as its parent sees it. `stack` is what it trains, `kind` what it has compiled a step for."""

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
        """Send it a stack, to a new process where the old one was lost."""
        if not self.process.is_alive():
            self.launch()
        self.kind, self.stack = kind_of(stack), stack
        with suppress(OSError):  # a process that was lost meanwhile is noticed when it is read
            self.pipe.send(stack)

    def receive(self) -> Ended:
        """What became of its stack, once there is something to read."""
        assert self.stack is not None
        stack, self.stack = self.stack, None
        try:
            return Ended(stack, self.pipe.recv())
        except (EOFError, OSError):
            return Ended(stack, lost=self.exit_reason())
        except Exception:  # what can't be read
            self.process.kill()
            return Ended(stack, lost=self.exit_reason())

    def exit_reason(self) -> str:
        """Why the process is gone."""
        self.process.join(GRACE)
        code = self.process.exitcode or 0
        ending = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return f"the worker process was lost ({ending})"


def start_with_sigint_blocked(process: Any) -> None:
    """Start a process that has SIGINT blocked, as it inherits it: Ctrl-C reaches it through its parent alone. One that
    comes meanwhile waits: the first worker starts for seconds, until what it is forked from has imported torch.
    """
    resource_tracker.ensure_running()  # as it starts, it unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def kind_of(stack: StackOfJobs) -> tuple[str, int]:
    """Stacks of the same kind share a compiled step."""
    return stack_key(stack[0].config, stack[0].compilation.compiled), len(stack)


class ProcessExecutor:
    """Trains stacks on worker processes, each in turn on one CUDA device where there are some."""

    def __init__(self, plan: SweepPlan, train: Train = train_stack) -> None:
        self.number, self.train = plan.workers, train
        self.devices = cuda_devices(plan.stacks[0][0].config)
        self.waiting: list[StackOfJobs] = []
        self.workers: list[Worker] = []

    def start(self, stack: StackOfJobs) -> None:
        """Accept a stack, which waits for a worker."""
        self.waiting.append(stack)

    def poll(self) -> list[Ended]:
        """The stacks that have ended."""
        self.assign()
        busy: dict[Any, Worker] = {worker.pipe: worker for worker in self.workers if worker.stack}
        return [busy[pipe].receive() for pipe in wait(list(busy), POLL)]

    def assign(self) -> None:
        """Give each idle worker a stack, one of its last kind where there is one."""
        while self.waiting and len(self.workers) < self.number:
            number = len(self.workers)
            self.workers.append(Worker(self.train, number % self.devices if self.devices else None))
            self.workers[-1].assign(self.waiting.pop(0))
        for worker in self.workers:
            if worker.stack is None and self.waiting:
                best = next((i for i, stack in enumerate(self.waiting) if kind_of(stack) == worker.kind), 0)
                worker.assign(self.waiting.pop(best))

    def cancel(self) -> None:
        """Ask the workers to close their runs, and kill those that take longer than a few seconds."""
        self.waiting.clear()
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            wait_for_runs(worker)
            worker.process.kill()
            worker.process.join()
        self.workers.clear()


def wait_for_runs(worker: Worker) -> None:
    """Until its process has ended, or has closed none of its runs for some seconds."""
    before, closed = -1, 0
    while worker.stack is not None and worker.process.is_alive() and closed > before:
        worker.process.join(GRACE)
        before, closed = closed, sum(read_summary(job.directory) is not None for job in worker.stack)
