"""Plan a sweep: which jobs form a stack, how many stacks train at a time, and about how long it will take."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import chain, pairwise, zip_longest
from math import ceil
from pathlib import Path

import torch

from bnexp.data.batches import batches_of
from bnexp.data.load import load_data
from bnexp.models.registry import make_model, stacks
from bnexp.runs.config import ConfigError, RunConfig
from bnexp.runs.console import count, duration_range
from bnexp.sweeps.executor_config import LARGEST_STACK, ExecutorConfig
from bnexp.sweeps.job import Job, StackOfJobs
from bnexp.training.device import pick_device, thread_count, usable_cores
from bnexp.training.engine import Stack
from bnexp.training.evaluation import MOST_IMAGES
from bnexp.training.graph import shape_of
from bnexp.training.optim import find_optimizer

WORKING_SET = 2**22  # bytes of the fastest stack in results/performance.md: about the caches of one core
WORKER_BYTES = 600e6  # of a worker's memory, about: torch and a data set
COMPILED, COMPILING = 0.5, 8.0  # about: time of a compiled step / an uncompiled one; seconds to compile
LONG_ENOUGH = 0.3  # seconds of calls that are timed
TASK = 1200.0  # seconds of work in a task of a cluster: much longer than its start takes
WORTH_WORKERS = 12.0  # seconds of training; a shorter sweep ends before a second process has started


Task = list[StackOfJobs]  # what one process of a cluster trains, one stack after the other


@dataclass(frozen=True)
class SweepPlan:
    """The plan of a sweep or a single run.

    config: the executor's configuration. directory: the directory of the sweep or the run. workers: the number of
    worker processes. seconds: about how long it takes; seconds_of: how long each run takes, by its job's number. live:
    the digests of runs that an earlier command has submitted to a cluster.
    """

    stacks: list[StackOfJobs]
    config: ExecutorConfig
    directory: Path
    workers: int = 1
    seconds: float = 0.0
    seconds_of: dict[int, float] = field(default_factory=dict)
    live: frozenset[str] = frozenset()
    inline: bool = False  # whether it is a single run, or so short that it trains in this process

    @property
    def alone(self) -> bool:
        """Whether the plan is a single run, whose directory is the plan's own."""
        return [job.directory for stack in self.stacks for job in stack] == [self.directory]

    @property
    def executor(self) -> str:
        """The name of the executor: "inline" for a plan that is trained in this process, else the configured one."""
        return "inline" if self.inline else self.config.name

    def __str__(self) -> str:
        """Return the plan in a line: 48 runs: 4 stacks of 12 on 2 workers, about 2 to 5 min."""
        if not self.stacks:
            return "no run remains"
        runs = sum(len(stack) for stack in self.stacks)
        sizes = sorted({len(stack) for stack in self.stacks})
        sizes_text = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        shape = f"{count(len(self.stacks), 'stack')} of {sizes_text}" if sizes[-1] > 1 else "one by one"
        here = {"inline": "in this process", "processes": f"on {count(self.workers, 'worker')}"}
        where = here.get(self.executor) or f"as {count(len(self.tasks(self.stacks)), 'job')} of {self.executor}"
        return f"{count(runs, 'run')}: {shape} {where}, about {duration_range(self.seconds)}"

    def tasks(self, stacks: list[StackOfJobs]) -> list[Task]:
        """Divide stacks into tasks for a cluster: as many in each as make `runs_per_job` runs, or TASK seconds."""
        tasks: list[Task] = []
        most, size = float(self.config.runs_per_job or TASK), 0.0
        for stack in stacks:
            part = float(len(stack)) if self.config.runs_per_job else self.duration(stack)
            if not tasks or size + part > most:
                tasks.append([])
                size = 0.0
            tasks[-1].append(stack)
            size += part
        return tasks

    def duration(self, stack: StackOfJobs) -> float:
        """Return about how many seconds a stack trains."""
        return sum(self.seconds_of.get(job.number, 0.0) for job in stack)


def plan_sweep(jobs: list[Job], config: ExecutorConfig, directory: Path, timed: bool = True) -> SweepPlan:
    """Divide jobs into stacks with equal graphs and choose the number of workers.

    Stacks have about the size that trains fastest (`best_size`), but there are enough of them to keep all workers busy.
    Runs that gain nothing by stacking form stacks of one. timed: estimate the seconds, for which a few steps are run;
    without it they are 0. Raises ConfigError where the memory does not suffice.
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
    groups_seconds = [estimate(group) if timed or config.is_cluster else 0.0 for group in stacks]
    seconds = sum(groups_seconds)
    if config.is_cluster:
        return plan_tasks(stacks, groups_seconds, config, directory)
    alone = [job.directory for job in jobs] == [directory]
    short = config.workers is None and seconds < WORTH_WORKERS
    inline = config.name == "processes" and (alone or short)
    turns = zip_longest(*stacks)  # workers start with different graphs, so that each graph is compiled once
    ordered = [stack for turn in turns for stack in turn if stack]
    at_once = workers if config.name == "processes" and not inline else 1
    return SweepPlan(ordered, config, directory, workers, seconds / at_once, inline=inline)


def plan_tasks(
    groups: list[list[StackOfJobs]], seconds: list[float], config: ExecutorConfig, directory: Path
) -> SweepPlan:
    """Return the plan of a sweep for a cluster, on which all tasks are assumed to train at once.

    groups: the stacks, by their graph, so that a task compiles few of them. seconds: how long each group trains.
    """
    sizes = [sum(map(len, group)) for group in groups]
    seconds_of = {
        job.number: time / size
        for group, time, size in zip(groups, seconds, sizes, strict=True)
        for stack in group
        for job in stack
    }
    plan = SweepPlan(list(chain(*groups)), config, directory, seconds_of=seconds_of)
    return replace(plan, seconds=max(sum(map(plan.duration, task)) for task in plan.tasks(plan.stacks)))


def stack_key(config: RunConfig, compiled: bool) -> str:
    """Return a key that is equal for runs that can train in one stack.

    They have the same graph, steps, evaluations, checkpoint settings, device, threads and key `compile`. compiled:
    whether the run is compiled.
    """
    values = config.as_dict()
    schedule = {key: values[key] for key in ("steps", "eval", "checkpoint", "device", "threads", "compile")}
    return json.dumps(shape_of(config, compiled) | schedule | {"compiled": compiled}, sort_keys=True)


def device_workers(config: RunConfig) -> int:
    """Return how many workers train at a time: one for each CUDA device, one on MPS, or as many as the cores allow."""
    device = pick_device(config.device)
    on_cpu = max(1, usable_cores() // thread_count(config, device))
    return cuda_devices(config) or (1 if device.type == "mps" else on_cpu)


def threads_of(job: Job) -> int:
    """Return the number of threads on which a job's run would train here."""
    return thread_count(job.config, pick_device(job.config.device))


def cuda_devices(config: RunConfig) -> int:
    """Return the number of CUDA devices if the run trains on CUDA, else 0."""
    return torch.cuda.device_count() if pick_device(config.device).type == "cuda" else 0


def divide(jobs: list[Job], workers: float, config: ExecutorConfig) -> list[StackOfJobs]:
    """Divide jobs with equal graphs into stacks whose sizes differ by at most one, since each size is compiled.

    workers: the share of the workers for these jobs. The number of stacks is a multiple of this share, rounded up, so
    that no worker is idle, but not larger than the number of jobs.
    """
    gains = stacks(jobs[0].config) and jobs[0].compilation.compiled
    limits = (config.max_stack, config.runs_per_job, LARGEST_STACK)
    largest = min(limit for limit in limits if limit is not None) if gains else 1
    best = best_size(jobs[0].config) if gains else 1
    number = max(ceil(len(jobs) / largest), 0 if config.max_stack else round(len(jobs) / best))
    number = min(ceil(number / ceil(workers)) * ceil(workers), len(jobs))
    bounds = [len(jobs) * i // number for i in range(number + 1)]
    return [jobs[first:last] for first, last in pairwise(bounds)]


def best_size(config: RunConfig) -> int:
    """Return about how many members the fastest stack has: they fill a core's caches, or half of a GPU's memory."""
    device, room = pick_device(config.device), WORKING_SET
    if device.type == "cuda":
        room = torch.cuda.get_device_properties(device).total_memory // 2
    return int(min(max(room / member_bytes(config), 1), LARGEST_STACK))


def member_bytes(config: RunConfig) -> float:
    """Compute the bytes of a member's parameters, gradients and optimizer slots in single precision."""
    data = load_data(config.dataset)
    model = make_model(config, data.shape, data.classes)
    copies = 2 + len(find_optimizer(config.optim).slots)
    return 4.0 * copies * sum(parameter.numel() for parameter in model.parameters())


def check_memory(group_stacks: list[StackOfJobs], workers: int) -> None:
    """Raise ConfigError if workers on the CPU need more than the machine's memory; activations are not counted.

    Each of them is assumed to train the largest of these stacks. group_stacks: the largest stack of each group with
    equal graphs. On other devices nothing is checked.
    """
    largest = max(group_stacks, key=lambda stack: len(stack) * member_bytes(stack[0].config))
    config = largest[0].config
    if pick_device(config.device).type != "cpu":
        return
    needed = workers * (WORKER_BYTES + len(largest) * member_bytes(config))
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > installed:
        raise ConfigError(
            f"{count(workers, 'worker')} with {count(len(largest), 'run')} of {member_bytes(config) / 1e9:.1f} GB each "
            f"({largest[0].arm}) need about {needed / 1e9:.0f} GB of memory, {installed / 1e9:.0f} GB are installed: "
            f"lower executor.workers, executor.max_stack or the network's widths"
        )


def estimate(group: list[StackOfJobs]) -> float:
    """Estimate the seconds in which one worker trains these stacks with equal graphs, from a few uncompiled steps."""
    config = group[0][0].config
    runs = sum(len(stack) for stack in group)
    step, evaluation = time_steps(config)
    evaluations = config.eval.times(config.steps)
    compiled = group[0][0].compilation.compiled
    compiling = COMPILING * len({len(stack) for stack in group}) if compiled else 0.0
    return compiling + runs * (config.steps * step * (COMPILED if compiled else 1.0) + evaluations * evaluation)


def time_steps(config: RunConfig) -> tuple[float, float]:
    """Measure the seconds of an uncompiled step and of an evaluation of a run. Sets torch's number of threads."""
    data, device = load_data(config.dataset), pick_device(config.device)
    torch.set_num_threads(thread_count(config, device))
    stack = Stack([config], data, device, compiled=False)
    batches = batches_of([config], len(data.train), device)
    few = data.validation[:MOST_IMAGES]

    step = shortest(lambda: stack.step(batches.batch(0)))
    return step, shortest(lambda: stack.evaluate(0, few)) * len(data.validation) / len(few)


def shortest(work: Callable[[], object]) -> float:
    """Measure the seconds of the fastest of up to 4 calls; a call of LONG_ENOUGH seconds or more is made once."""
    marks = [time.perf_counter()]
    while len(marks) <= 4 and marks[-1] - marks[0] < LONG_ENOUGH:
        work()
        marks.append(time.perf_counter())
    return min(after - before for before, after in pairwise(marks))
