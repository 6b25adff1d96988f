"""Worker processes: each trains one stack after another, and dies alone."""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from bnexp.console import harmless
from bnexp.streams import protect_streams
from bnexp.train import Interrupted, Member, StopRequest

GRACE = 3.0  # seconds between asking a worker to stop and killing it
POLL = 0.2
REPORT_EVERY = 0.5  # seconds between a stack's reports of its step
PRELOADED = ["bnexp.launch"]
LONGEST_SOCKET = 107  # bytes of the path of a Unix socket
SOCKET = "pymp-01234567/listener-01234567"  # of the process that forks the workers, in the temporary directory


def start_method() -> str:
    """A fork of this process would copy the locks of torch's threads. Where that works, workers are forks of a process
    that has imported everything and computed nothing: one import for all workers of all sweeps. It is reached by a
    socket, whose path can be too long; then every worker imports for itself.
    """
    fits = len(os.fsencode(os.path.join(tempfile.gettempdir(), SOCKET))) <= LONGEST_SOCKET
    return "forkserver" if sys.platform == "linux" and fits else "spawn"


@dataclass(frozen=True)
class Opened:
    """A run has its directory, and what it goes on from."""

    job: int
    directory: Path
    step: int = 0


@dataclass(frozen=True)
class Progress:
    """A stack reached a step."""

    jobs: list[int]
    step: int


@dataclass(frozen=True)
class Evaluated:
    job: int
    step: int
    accuracy: float


@dataclass(frozen=True)
class Closed:
    """A run ended; `summary` is what its directory says, or that it failed."""

    job: int
    directory: Path
    summary: dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """A stack came to its end with this result."""

    result: Any


Event = Opened | Progress | Evaluated | Closed | Trained
Emit = Callable[[Event], None]


class Reporter:
    """Tells a stack's events to whoever listens: the display of train.py for runs of a sweep."""

    def __init__(self, jobs: list[int], emit: Emit) -> None:
        self.jobs, self.emit, self.told_at = jobs, emit, 0.0

    def prepare(self, steps: int, compiling: bool) -> None:
        self.emit(Progress(self.jobs, 0))

    def progress(self, step: int) -> None:
        if time.monotonic() > self.told_at + REPORT_EVERY:
            self.told_at = time.monotonic()
            self.emit(Progress(self.jobs, step))

    def evaluated(self, member: Member) -> None:
        self.emit(Evaluated(member.launch.job, member.steps[-1], member.accuracy[-1]))

    def closed(self, member: Member) -> None:
        if isinstance(member.outcome, dict):  # a failure is told with the sweep's end
            self.emit(Closed(member.launch.job, member.launch.directory, member.outcome))


class Train(Protocol):
    """Trains a stack and returns its result, which can be pickled. Raises Interrupted."""

    def __call__(self, stack: Any, emit: Emit) -> Any: ...


def live(pipe: Connection, train: Train, directory: str, device: int | None, environment: dict[str, str]) -> None:
    """A worker process: what it prints, warnings and tracebacks, goes where its parent's lines go, or nowhere.
    `environment`: the parent's as it is now; what forks the workers has an earlier one.
    """
    os.environ.update(environment)
    protect_streams()
    serve(pipe, train, directory, device)


def serve(pipe: Connection, train: Train, directory: str, device: int | None) -> None:
    """A worker's life: train each stack that comes. SIGINT is the parent's business, which tells by SIGTERM. An event
    that can't be sent is left out; without its result a stack would not end, so that one has to be.
    """
    os.chdir(directory)
    if device is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[device] if visible else str(device)
    orphaned = False

    def send(event: Event) -> None:
        nonlocal orphaned
        try:
            pipe.send(event)
        except OSError:
            if not orphaned:  # the parent is gone: close the runs and follow
                os.kill(os.getpid(), signal.SIGTERM)
            orphaned = True

    def emit(event: Event) -> None:
        with harmless():
            send(event)

    with suppress(EOFError, Interrupted):
        while not orphaned:
            send(Trained(train(pipe.recv(), emit)))


class Worker:
    """A worker process as its parent sees it. `stack` is what it trains, `kind` what that has alike with others."""

    def __init__(self, train: Train, device: int | None) -> None:
        self.device, self.stack, self.kind = device, None, object()
        context: Any = multiprocessing.get_context(start_method())
        context.set_forkserver_preload(PRELOADED)
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, train, os.getcwd(), device, dict(os.environ))
        self.process = context.Process(target=live, args=arguments, daemon=True)
        start_deaf(self.process)
        theirs.close()

    def give(self, kind: object, stack: Any) -> None:
        self.kind, self.stack = kind, stack
        with suppress(OSError):  # one that has died is noticed when it is read
            self.pipe.send(stack)

    def read(self) -> Event | None:
        """Its next event, or None where it has died; one that says what can't be read is ended."""
        try:
            event: Event = self.pipe.recv()
        except (EOFError, OSError):
            return None
        except Exception:
            self.process.kill()
            return None
        return event

    def how_it_died(self) -> str:
        self.process.join(GRACE)
        code = self.process.exitcode or 0
        return f"the worker process died ({signal.Signals(-code).name if code < 0 else f'exit status {code}'})"


def start_deaf(process: Any) -> None:
    """Start a process that has SIGINT blocked, as it inherits it: Ctrl-C reaches it through its parent alone. One that
    comes meanwhile waits: the first worker starts for seconds, until what it is forked from has imported torch.
    """
    resource_tracker.ensure_running()  # as it starts, it unblocks SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Pool:
    """Trains stacks in worker processes. `died` is told what a process was training when it died, and returns the
    stacks to try again; `alike` tells which stacks share a compiled step.
    """

    def __init__(
        self, train: Train, emit: Emit, died: Callable[[Any, str], list[Any]], alike: Callable[[Any], object]
    ) -> None:
        self.train, self.emit, self.died, self.alike = train, emit, died, alike
        self.waiting: list[tuple[object, Any]] = []  # stacks behind what they have alike
        self.results: list[Any] = []

    def run(self, stacks: list[Any], workers: int, devices: int) -> list[Any]:
        """Results of all stacks, as they come. Raises Interrupted once the workers have closed their runs."""
        self.await_turn(stacks)
        crew: list[Worker] = []
        try:
            with StopRequest() as stop:
                crew = [Worker(self.train, number % devices if devices else None) for number in range(workers)]
                while stop.signum is None and (self.waiting or any(worker.stack for worker in crew)):
                    crew = [self.staffed(worker) for worker in crew]
                    self.listen(crew)
                if stop.signum is not None:
                    self.dismiss(crew)
                    raise Interrupted(stop.signum)
        finally:
            for worker in crew:
                worker.process.kill()
                worker.process.join()
        return self.results

    def await_turn(self, stacks: list[Any]) -> None:
        self.waiting += [(self.alike(stack), stack) for stack in stacks]

    def staffed(self, worker: Worker) -> Worker:
        """Give an idle worker a stack, one like its last where there is one; replace a worker that has died."""
        if worker.stack or not self.waiting:
            return worker
        if not worker.process.is_alive():
            worker = Worker(self.train, worker.device)
        best = next((i for i, (kind, _) in enumerate(self.waiting) if kind == worker.kind), 0)
        worker.give(*self.waiting.pop(best))
        return worker

    def listen(self, crew: list[Worker]) -> None:
        busy: dict[Any, Worker] = {worker.pipe: worker for worker in crew if worker.stack}
        for pipe in wait(list(busy), POLL):
            worker = busy[pipe]
            event = worker.read()
            if event is not None:
                self.hear(worker, event)
                continue
            stack, worker.stack = worker.stack, None
            self.await_turn(self.died(stack, worker.how_it_died()))

    def hear(self, worker: Worker, event: Event) -> None:
        if isinstance(event, Trained):
            worker.stack = None
            self.results.append(event.result)
        else:
            self.emit(event)

    def dismiss(self, crew: list[Worker]) -> None:
        """Ask the workers to close their runs; who takes longer than a few seconds is killed by the caller."""
        for worker in crew:
            worker.process.terminate()
        deadline = time.monotonic() + GRACE
        for worker in crew:
            while worker.stack and worker.pipe.poll(max(deadline - time.monotonic(), 0.0)):
                event = worker.read()
                if event is None:
                    worker.stack = None
                    continue
                if isinstance(event, Closed):  # the next of a stack has as long
                    deadline = time.monotonic() + GRACE
                self.hear(worker, event)
