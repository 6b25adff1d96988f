"""Clocks: how many seconds training took, and when the next checkpoint is due."""

import time

import torch


class Stopwatch:
    """A stopwatch for training; `total`: seconds per member. It is stopped while networks are evaluated or compiled."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.total, self.since = device, 0.0, 0.0

    def start(self) -> None:
        """Start the clock."""
        self.since = self.now()

    def stop(self, shared_by: int) -> None:
        """Stop the clock, and add the time since its start, divided by `shared_by` (members), to `total`."""
        self.total += (self.now() - self.since) / shared_by

    def now(self) -> float:
        """Wait until the device has computed everything that is queued; return the seconds of a monotonic clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


class Timer:
    """A timer that is due every `interval` seconds."""

    def __init__(self, interval: float) -> None:
        self.interval, self.last = interval, time.monotonic()

    def due(self) -> bool:
        """Return whether `interval` seconds have passed since it was created or last due; if so, start it again."""
        now = time.monotonic()
        if now - self.last < self.interval:
            return False
        self.last = now
        return True
