"""Clocks: the seconds of training, and whether it is time to save."""

import time

import torch


class Stopwatch:
    """Seconds of training alone: stopped while the networks are evaluated or compiled. Members share them equally."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.total, self.since = device, 0.0, 0.0

    def start(self) -> None:
        self.since = self.now()

    def stop(self, shared_by: int) -> None:
        self.total += (self.now() - self.since) / shared_by

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


class Timer:
    """Whether so many seconds have passed since the last time."""

    def __init__(self, every: float) -> None:
        self.every, self.last = every, time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self.last < self.every:
            return False
        self.last = now
        return True
