"""Jobs → stacks: which runs train as one, how many at a time, and about how long a sweep will take."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from math import ceil
from pathlib import Path

import torch

from bnexp.data.batches import Batches
from bnexp.data.load import load_data
from bnexp.models.registry import make_model, stacks
from bnexp.runs.config import ConfigError, RunConfig
from bnexp.runs.console import count, duration_range
from bnexp.sweeps.job import LARGEST_STACK, ExecutorConfig, Job, StackOfJobs
from bnexp.training.device import pick_device, thread_count, usable_cores
from bnexp.training.engine import Stack, shape_of
from bnexp.training.evaluation import EVALUATION_BATCH
from bnexp.training.optim import find_optimizer

WORKING_SET = 2**22  # bytes of a stack, about those of a core's own caches: measured best, results/performance.md
WORKER_BYTES = 600e6  # torch and a data set, about
COMPILED, COMPILING = 0.5, 8.0  # a compiled step against an uncompiled one; seconds to compile, both about
LONG_ENOUGH = 0.3  # seconds of calls that are timed
WORTH_WORKERS = 12.0  # seconds of training: shorter sweeps are over before a second process has started


@dataclass(frozen=True)
class SweepPlan:
    """Stacks, the executor that is to train them and how, and about how many seconds it will take."""

    stacks: list[StackOfJobs]
    config: ExecutorConfig
    directory: Path
    workers: int = 1
    seconds: float = 0.0
    inline: bool = False  # too short for worker processes

    @property
    def alone(self) -> bool:
        """Whether it is a single run, whose directory is that of the plan."""
        return [job.directory for stack in self.stacks for job in stack] == [self.directory]

    @property
    def executor(self) -> str:
        """The executor's name."""
        return "inline" if self.inline else self.config.name

    def __str__(self) -> str:
        """48 runs: 4 stacks of 12 on 2 workers, about 2 to 5 min"""
        if not self.stacks:
            return "nothing is left to do"
        runs = sum(len(stack) for stack in self.stacks)
        sizes = sorted({len(stack) for stack in self.stacks})
        sizes_text = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        shape = f"{count(len(self.stacks), 'stack')} of {sizes_text}" if sizes[-1] > 1 else "one by one"
        where = {
            "inline": "in this process",
            "processes": f"on {count(self.workers, 'worker')}",
            "slurm": f"as {count(len(self.stacks), 'job')} of {self.config.cluster}",
        }
        return f"{count(runs, 'run')}: {shape} {where[self.executor]}, about {duration_range(self.seconds)}"


def plan_sweep(jobs: list[Job], config: ExecutorConfig, directory: Path, timed: bool = True) -> SweepPlan:
    """Stacks of equal graphs, as large as caches and memory allow, at least one a worker. `timed`: with the seconds it
    will take, for which a few steps are made. Raises ConfigError.
    """
    if not jobs:
        return SweepPlan([], config, directory)
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(stack_key(job.config, job.compilation.compiled), []).append(job)
    fewest = min(device_workers(group[0].config) for group in groups.values())
    workers = (config.workers or fewest) if config.name == "processes" else 1
    stacks = [divide(group, workers * len(group) / len(jobs), config) for group in groups.values()]
    workers = min(workers, sum(map(len, stacks)))
    check_memory([max(group, key=len) for group in stacks], workers)
    seconds = sum(estimate(group) for group in stacks) if timed else 0.0
    short = config.name == "processes" and config.workers is None and seconds < WORTH_WORKERS
    turns = zip_longest(*stacks)  # so that workers begin with graphs of their own, each compiled once
    ordered = [stack for turn in turns for stack in turn if stack]
    at_once = {"processes": 1 if short else workers, "inline": 1, "slurm": len(ordered)}[config.name]
    return SweepPlan(ordered, config, directory, workers, seconds / at_once, inline=short)


def stack_key(config: RunConfig, compiled: bool) -> str:
    """Runs with the same key can train as one: the same computation, the same steps and evaluations."""
    values = config.as_dict()
    along = {key: values[key] for key in ("steps", "eval", "checkpoint", "device", "threads", "compile")}
    return json.dumps(shape_of(config) | along | {"compiled": compiled}, sort_keys=True)


def device_workers(config: RunConfig) -> int:
    device = pick_device(config.device)
    together = max(1, usable_cores() // thread_count(config, device))
    return cuda_devices(config) or (1 if device.type == "mps" else together)


def cuda_devices(config: RunConfig) -> int:
    """CUDA devices that a sweep spreads over; 0 where it runs on something else."""
    return torch.cuda.device_count() if pick_device(config.device).type == "cuda" else 0


def divide(jobs: list[Job], workers: float, config: ExecutorConfig) -> list[StackOfJobs]:
    """Stacks that differ by one job at most: each size is compiled once. Their number is a multiple of the workers that
    these jobs have for themselves, so that none is idle.
    """
    gains = gains_from_stacking(jobs[0])
    largest = min(config.max_stack or LARGEST_STACK, LARGEST_STACK) if gains else 1
    best = best_size(jobs[0].config) if gains else 1
    number = max(ceil(len(jobs) / largest), 0 if config.max_stack else round(len(jobs) / best))
    number = min(ceil(number / ceil(workers)) * ceil(workers), len(jobs))
    bounds = [len(jobs) * i // number for i in range(number + 1)]
    return [jobs[first:last] for first, last in pairwise(bounds)]


def gains_from_stacking(job: Job) -> bool:
    """Whether company makes a run faster: not an uncompiled or a convolutional one."""
    return stacks(job.config) and job.compilation.compiled


def best_size(config: RunConfig) -> int:
    """How many members make the fastest stack, where they gain from it."""
    device, room = pick_device(config.device), WORKING_SET
    if device.type == "cuda":
        room = torch.cuda.get_device_properties(device).total_memory // 2
    return int(min(max(room / member_bytes(config), 1), LARGEST_STACK))


def member_bytes(config: RunConfig) -> float:
    """Parameters, gradients, the optimizer's slots."""
    data = load_data(config.dataset)
    model = make_model(config, data.shape, data.classes)
    copies = 2 + len(find_optimizer(config.optim).slots)
    return 4.0 * copies * sum(parameter.numel() for parameter in model.parameters())


def check_memory(found: list[StackOfJobs], workers: int) -> None:
    """Refuse a sweep that would not fit the machine's memory. Its estimate is low: it leaves out activations."""
    largest = max(found, key=lambda stack: len(stack) * member_bytes(stack[0].config))
    config = largest[0].config
    if pick_device(config.device).type != "cpu":
        return
    needed = workers * (WORKER_BYTES + len(largest) * member_bytes(config))
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ConfigError(
            f"{count(workers, 'worker')} with {count(len(largest), 'run')} of {member_bytes(config) / 1e9:.1f} GB each "
            f"({largest[0].arm}) need about {needed / 1e9:.0f} GB of memory, {there / 1e9:.0f} GB are there: "
            f"lower executor.workers, executor.max_stack or the network's widths"
        )


def estimate(found: list[StackOfJobs]) -> float:
    """Seconds that the stacks of one group take one worker, about: a few uncompiled steps are timed."""
    config = found[0][0].config
    runs = sum(len(stack) for stack in found)
    step, evaluation = time_steps(config)
    evaluations = config.eval.times(config.steps)
    compiled = found[0][0].compilation.compiled
    compiling = COMPILING * len({len(stack) for stack in found}) if compiled else 0.0
    return compiling + runs * (config.steps * step * (COMPILED if compiled else 1.0) + evaluations * evaluation)


def time_steps(config: RunConfig) -> tuple[float, float]:
    """Seconds of an uncompiled step and of an evaluation of one run."""
    data, device = load_data(config.dataset), pick_device(config.device)
    torch.set_num_threads(thread_count(config, device))
    stack = Stack([config], data, device, compiled=False)
    batches = Batches([0], len(data.train), config.batch_size, config.dataset.augment != "none", device)
    few = data.validation[:EVALUATION_BATCH]

    step = shortest(lambda: stack.step(batches.batch(0)))
    return step, shortest(lambda: stack.evaluate(0, few)) * len(data.validation) / len(few)


def shortest(work: Callable[[], object]) -> float:
    """Seconds of the quickest of a few calls; of long ones the first will do."""
    marks = [time.perf_counter()]
    while len(marks) <= 4 and marks[-1] - marks[0] < LONG_ENOUGH:
        work()
        marks.append(time.perf_counter())
    return min(after - before for before, after in pairwise(marks))
