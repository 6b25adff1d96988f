"""A stand-in for training, which a worker process imports: the first override of a stack says what it does."""

import os
import signal
import time
from pathlib import Path

from bnexp.sweeps.job import Failure, Failures, StackOfJobs


def fake_train(stack: StackOfJobs) -> Failures:
    """Leaves its process's number in a file `began`, and returns it as a failure of the first job."""
    kind, number = stack[0].overrides[0], stack[0].number
    Path(f"began-{number}").write_text(str(os.getpid()))
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "interrupts itself":
        os.kill(os.getpid(), signal.SIGINT)
    if kind == "exits":
        os._exit(3)
    if kind == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while kind in ("stubborn", "endless"):
        time.sleep(0.05)
    return {number: Failure(str(os.getpid()))}
