"""Signals that ask a process to stop."""

import multiprocessing
import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Interrupted(KeyboardInterrupt):
    """The user or the system asked to stop; the runs were closed."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopRequest:
    """Turns the first SIGINT, SIGTERM or SIGHUP (a terminal that closes) into a request that the loop heeds between
    steps; a second one ends at once, but for a worker: its parent repeats what a whole group was told, and ends it
    where it takes too long. A signal that the process ignores stays ignored.
    """

    signum: int | None = None

    def __enter__(self) -> Self:
        heeded = [
            s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN
        ]
        main = threading.current_thread() is threading.main_thread()
        self.previous = {s: signal.signal(s, self.note) for s in heeded} if main else {}
        return self

    def note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self.restore()
        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def asked(self) -> bool:
        return self.signum is not None

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
