"""Signals that ask a process to stop."""

import multiprocessing
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to stop. It is raised once the runs are closed."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopRequest:
    """A context in which the first SIGINT, SIGTERM or SIGHUP (a closed terminal) only sets `signum`, for the loop to
    read, also in the contexts around this one.

    A second signal ends the process as usual. A worker (a process started by multiprocessing), however, ignores further
    SIGTERMs: a signal to the whole process group reaches it twice, directly and from its parent, and the parent kills
    it if it takes too long. A signal that the process ignores stays ignored. Outside the main thread, the context does
    nothing.
    """

    signum: int | None = None
    active: ClassVar[list["StopRequest"]] = []  # from the outermost inwards

    def __enter__(self) -> Self:
        around = self.active[-1:]
        self.active.append(self)
        self.previous: dict[signal.Signals, Any] = {}
        if around and around[0].requested():  # before this context was entered
            self.signum = around[0].signum
        elif threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
            self.previous = {number: handler for number, handler in handlers.items() if handler != signal.SIG_IGN}
            for number in self.previous:
                signal.signal(number, self.record)
        return self

    def record(self, signum: int, frame: FrameType | None) -> None:
        """Record the signal here and in the contexts around this one, and restore the handlers from before them all."""
        self.signum = signum
        self.restore()
        around = getattr(self.previous[signal.Signals(signum)], "__self__", None)
        if isinstance(around, StopRequest):
            around.record(signum, frame)
        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def requested(self) -> bool:
        """Return whether a signal has arrived."""
        return self.signum is not None

    def restore(self) -> None:
        """Restore the signal handlers from before the context."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.active.remove(self)
        if not self.requested():  # else they were restored, and a worker ignores SIGTERM from then on
            self.restore()
