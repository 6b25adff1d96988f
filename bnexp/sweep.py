"""Jobs → stacks: which runs train as one, how many at a time, and about how long a sweep will take."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import chain, pairwise, zip_longest
from math import ceil

import torch

from bnexp.archs.registry import make_model, stacks
from bnexp.batches import Batches
from bnexp.config import ConfigError, RunConfig, require
from bnexp.console import count, duration
from bnexp.data import load_data
from bnexp.engine import EVALUATION_BATCH, Stack, pick_device, shape_of, thread_count, usable_cores
from bnexp.optim import find_optimizer
from bnexp.runs import Compilation

LARGEST_STACK = 128  # members: the most that was measured, results/performance.md
WORKING_SET = 2**22  # bytes of a stack, about those of a core's own caches: measured best, results/performance.md
MOST_WORKERS = 1024
CLUSTERS = ("slurm", "local")
WORKER_BYTES = 600e6  # torch and a data set, about
COMPILED, COMPILING = 0.5, 8.0  # a compiled step against an uncompiled one; seconds to compile, both about
LONG_ENOUGH = 0.3  # seconds of calls that are timed
WORTH_WORKERS = 12.0  # seconds of training: shorter sweeps are over before a second process has started


@dataclass(frozen=True)
class Job:
    """A run of a sweep: its number, its overrides, those of them that tell it from the others, its configuration, and
    whether it is compiled.
    """

    number: int
    words: list[str]
    overrides: list[str]
    config: RunConfig
    compilation: Compilation = field(default_factory=Compilation)

    @property
    def title(self) -> str:
        return " ".join(self.overrides) or "defaults"

    @property
    def arm(self) -> str:
        """Its title but for the seed."""
        return " ".join(word for word in self.overrides if not word.startswith("seed=")) or "defaults"


StackOfJobs = list[Job]


@dataclass(frozen=True)
class Options:
    """hydra.launcher.workers and hydra.launcher.max_stack; None: chosen from the machine."""

    workers: int | None = None
    max_stack: int | None = None
    submit: str | None = None  # a cluster of submitit's: each stack becomes a job of it


def parse_options(workers: object = "auto", max_stack: object = "auto", submit: str | None = None) -> Options:
    """Raises ConfigError."""
    most = {"workers": MOST_WORKERS, "max_stack": LARGEST_STACK}
    found: dict[str, int | None] = {}
    require(submit in (None, *CLUSTERS), "hydra.launcher.submit", submit, f"null or one of {', '.join(CLUSTERS)}")
    if submit and find_spec("submitit") is None:
        raise ConfigError(f"hydra.launcher.submit={submit} needs submitit: pip install 'bnexp[slurm]'")
    for name, value in (("workers", workers), ("max_stack", max_stack)):
        whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most[name]
        require(value == "auto" or whole, f"hydra.launcher.{name}", value, f"auto or a number from 1 to {most[name]}")
        found[name] = value if isinstance(value, int) else None
    return Options(**found, submit=submit)


@dataclass(frozen=True)
class SweepPlan:
    stacks: list[StackOfJobs]
    workers: int
    seconds: float  # about
    here: bool = False  # too short for worker processes
    submit: str | None = None

    def __str__(self) -> str:
        """48 runs: 4 stacks of 12 on 2 workers, about 3 min"""
        if not self.stacks:
            return "nothing is left to do"
        runs = sum(len(stack) for stack in self.stacks)
        sizes = sorted({len(stack) for stack in self.stacks})
        spread = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        shape = f"{count(len(self.stacks), 'stack')} of {spread}" if sizes[-1] > 1 else "one by one"
        where = "in this process" if self.here else f"on {count(self.workers, 'worker')}"
        where = f"as {count(len(self.stacks), 'job')} of {self.submit}" if self.submit else where
        return f"{count(runs, 'run')}: {shape} {where}, about {duration(self.seconds)}"


def plan_sweep(jobs: list[Job], options: Options, timed: bool = True) -> SweepPlan:
    """Stacks of equal graphs, as large as caches and memory allow, at least one a worker. `timed`: with the seconds it
    will take, for which a few steps are made. Raises ConfigError.
    """
    if not jobs:
        return SweepPlan([], 0, 0.0)
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(stack_key(job.config, job.compilation.compiled), []).append(job)
    fewest = min(device_workers(group[0].config) for group in groups.values())
    workers = 1 if options.submit else options.workers or fewest
    found = [divide(group, workers * len(group) / len(jobs), options) for group in groups.values()]
    every = list(chain.from_iterable(found))
    workers = min(workers, len(every))
    check_memory([max(group, key=len) for group in found], workers)
    seconds = sum(estimate(group) for group in found) if timed else 0.0
    if options.submit:
        return SweepPlan(every, workers, seconds / len(every), submit=options.submit)
    if options.workers is None and seconds < WORTH_WORKERS:
        return SweepPlan(every, workers, seconds, here=True)
    turns = zip_longest(*found)  # so that workers begin with graphs of their own, each compiled once
    return SweepPlan([stack for turn in turns for stack in turn if stack], workers, seconds / workers)


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


def divide(jobs: list[Job], workers: float, options: Options) -> list[StackOfJobs]:
    """Stacks that differ by one job at most: each size is compiled once. Their number is a multiple of the workers that
    these jobs have for themselves, so that none is idle.
    """
    gains = gains_from_company(jobs[0])
    largest = min(options.max_stack or LARGEST_STACK, LARGEST_STACK) if gains else 1
    best = best_size(jobs[0].config) if gains else 1
    number = max(ceil(len(jobs) / largest), 0 if options.max_stack else round(len(jobs) / best))
    number = min(ceil(number / ceil(workers)) * ceil(workers), len(jobs))
    bounds = [len(jobs) * i // number for i in range(number + 1)]
    return [jobs[first:last] for first, last in pairwise(bounds)]


def gains_from_company(job: Job) -> bool:
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
            f"lower hydra.launcher.workers, hydra.launcher.max_stack or the network's widths"
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
