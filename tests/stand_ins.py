"""A stand-in for training, which a worker process imports."""

import os
import signal
import time

from bnexp.workers import Emit, Progress

Fake = tuple[str, int]


def fake_train(stack: Fake, emit: Emit) -> Fake:
    kind, number = stack
    emit(Progress([number], os.getpid()))
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "interrupts itself":
        os.kill(os.getpid(), signal.SIGINT)
        emit(Progress([number], 0))
    if kind == "exits":
        os._exit(3)
    if kind == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if kind in ("stubborn", "endless"):
        emit(Progress([number], 0))
        while True:
            time.sleep(0.05)
    return stack
