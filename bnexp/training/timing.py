"""Clocks: how many seconds training took, and when the next checkpoint is due."""

import time

import torch


class Stopwatch:
    """Measures the seconds of training, `total`. It is stopped while the networks are evaluated or compiled."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.total, self.since = device, 0.0, 0.0

    def start(self) -> None:
        """Start the clock."""
        self.since = self.now()

    def stop(self, shared_by: int) -> None:
        """Stop the clock; of the time since its start, each of `shared_by` members gets an equal share."""
        self.total += (self.now() - self.since) / shared_by

    def now(self) -> float:
        """Return seconds of a monotonic clock, once the device has computed all that was queued there."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


class Timer:
    """A timer that is due once in each interval of so many seconds."""

    def __init__(self, interval: float) -> None:
        self.interval, self.last = interval, time.monotonic()

    def due(self) -> bool:
        """Whether `interval` seconds have passed since it was last due, or since the start."""
        now = time.monotonic()
        if now - self.last < self.interval:
            return False
        self.last = now
        return True
