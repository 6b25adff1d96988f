"""What every contender of the benchmark is: a process that says "ready", then answers each line of its input.

A request names a task ("none" or "batch", say) and either seconds to work, answered with the rate that was reached, or
updates to have made since the start, answered with the accuracy on the test images. In between the process is blocked
on its input. This module needs the standard library and numpy alone: some contenders have an interpreter of their own.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BATCH = 60
RATE = 0.01
WIDTHS = (784, 100, 100, 100, 10)
STD = 0.05  # of the starting weights
EPSILON, MOMENTUM = 1e-5, 0.1  # of batch normalization; the weight of the new value in the running averages

GROUPS = 4  # of group normalization

Array = npt.NDArray[np.generic]


@dataclass
class Task:
    """`train(n)` makes n updates and returns when they are made; a call makes at most `chunk`."""

    train: Callable[[int], None]
    accuracy: Callable[[], float]
    chunk: int = 20
    worth: float = 1.0  # what an update counts for: models that it moves
    done: int = 0

    def advance(self, updates: int) -> None:
        self.train(updates)
        self.done += updates

    def rate(self, seconds: float) -> float:
        first, start = self.done, time.perf_counter()
        while (now := time.perf_counter()) < start + seconds:
            self.advance(self.chunk)
        return self.worth * (self.done - first) / (now - start)

    def accuracy_after(self, updates: int) -> float:
        while self.done < updates:
            self.advance(min(self.chunk, updates - self.done))
        return self.accuracy()


def load_images(path: str) -> tuple[Array, Array, Array, Array]:
    """Training pixels (N, 784) uint8 and labels, test pixels and labels."""
    with np.load(path) as arrays:
        pixels, labels, test_pixels, test_labels = (arrays[f"arr_{i}"] for i in range(4))
    return pixels, labels, test_pixels, test_labels


def serve(tasks: dict[str, Task]) -> None:
    for task in tasks.values():
        for _ in range(2):  # compile, fill caches
            task.advance(task.chunk)
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    answers.write("ready\n")
    for line in sys.stdin:
        request = json.loads(line)
        task = tasks[request["task"]]
        answer = task.rate(request["seconds"]) if "seconds" in request else task.accuracy_after(request["updates"])
        answers.write(f"{answer}\n")
