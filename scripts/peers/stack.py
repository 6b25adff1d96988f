"""bnexp itself: the stacks that one process trains one after the other: stack.py THREADS SEED SIZE [SIZE …].

With SIZE 0, a run that isn't compiled, with every norm that the plain loop has.
"""

import sys
from collections.abc import Callable
from statistics import mean

import torch
from network import NORMS
from serve import GROUPS, Task, serve

from bnexp.data.batches import Batches
from bnexp.data.load import load_data
from bnexp.runs.config import NormConfig, RunConfig
from bnexp.training.engine import Stack

CPU = torch.device("cpu")
TURN = 20  # steps of a stack before the next one's: few, so that processes that started together end together


def make_step(stack: Stack) -> Callable[[], None]:
    """The step of `bnexp.training.loop`, without its evaluations."""
    seeds = [config.seed for config in stack.configs]
    batches = Batches(seeds, len(stack.data.train), stack.config.batch_size, False, CPU)
    stack.warm_up(batches.batch(0))
    made = 0

    def step() -> None:
        nonlocal made
        stack.prepare(made)
        stack.step(batches.batch(made))
        made += 1

    return step


def make_task(norm: str, threads: int, groups: list[range], compiled: bool) -> Task:
    def config(seed: int) -> RunConfig:
        return RunConfig(norm=NormConfig(name=norm, groups=GROUPS), seed=seed, threads=threads, compile=compiled)

    data = load_data(config(0).dataset)
    stacks = [Stack([config(seed) for seed in seeds], data, CPU, compiled) for seeds in groups]
    steps = [make_step(stack) for stack in stacks]

    def train(updates: int) -> None:
        for step in steps:
            for _ in range(updates):
                step()

    def accuracy() -> float:
        return mean(stack.evaluate(row, data.test).accuracy for stack in stacks for row in range(len(stack.configs)))

    return Task(train, accuracy, TURN, worth=sum(map(len, groups)))


if __name__ == "__main__":
    threads, seed, *sizes = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    compiled = sizes != [0]
    sizes = sizes if compiled else [1]
    bounds = [seed + sum(sizes[:i]) for i in range(len(sizes))]
    groups = [range(first, first + size) for first, size in zip(bounds, sizes, strict=True)]
    norms = ("none", "batch") if compiled else ("none", *NORMS)
    serve({norm: make_task(norm, threads, groups, compiled) for norm in norms})
