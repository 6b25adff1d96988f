"""`bnexp bench`: measure the training steps a second with every norm and without.

The published comparison is 510 batches a second without and 270 with batch normalization. Such a ratio depends on how
the step is run as much as on the norm, so it is taken within one mode (eager, compiled, stacked), and names it.
"""

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, product
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.func import vmap

from bnexp.compare.statistics import CONFIDENCE
from bnexp.compare.throughput_plan import CONTROL, Benchmark, BenchOptions
from bnexp.data.batches import Batch, Examples, batches_of, gather
from bnexp.data.load import Data, load_data
from bnexp.runs.config import RunConfig
from bnexp.runs.console import console, count, duration, print_line
from bnexp.training.compiled import Compiled
from bnexp.training.device import decide_compilation, pick_device, prepare_torch, thread_count
from bnexp.training.engine import Stack, dimensions, make_loss
from bnexp.training.state import MemberState
from bnexp.training.timing import Stopwatch

PREPARED = 64  # batches made before the measurement, and used in turn
UNTIMED = 2  # calls before each measurement, which fill the caches again


# ---- several rounds of one measurement


@dataclass(frozen=True)
class Spread:
    """The median of values measured one a round, with the interval that `interval_description` describes.

    `rounds` holds the values themselves.
    """

    median: float
    low: float
    high: float
    rounds: list[float]

    def text(self, digits: int) -> str:
        """Return "median [low, high]", rounded to `digits` decimals."""
        return f"{self.median:,.{digits}f} [{self.low:,.{digits}f}, {self.high:,.{digits}f}]"


def spread(values: list[float]) -> Spread:
    """Return the median of `values`, one for each round, with its interval by order statistics."""
    ordered, rank = sorted(values), interval_rank(len(values))
    return Spread(float(np.median(ordered)), ordered[rank], ordered[-1 - rank], values)


def ratio_of(values: list[float], control: list[float]) -> Spread:
    """Return the ratio of two measurements, taken round by round, since a machine that slows down slows both."""
    return spread([value / base for value, base in zip(values, control, strict=True)])


def interval_rank(n: int) -> int:
    """Return how many of n sorted values to leave out at each end: as many as still give a 95% interval of the median.

    The result is 0 also below 6 values, where even all of them cover the median less often.
    """
    return max((rank for rank in range(n // 2) if coverage(n, rank) >= CONFIDENCE), default=0)


def coverage(n: int, rank: int) -> float:
    """Return the probability that n independent values, `rank` left out at each end, span the true median."""
    return 1 - 2 * sum(math.comb(n, k) for k in range(rank + 1)) * 0.5**n


def interval_description(n: int) -> str:
    """Return as text which interval a Spread of n rounds has."""
    rank = interval_rank(n)
    if coverage(n, rank) < CONFIDENCE:
        return f"median of {n} rounds [lowest, highest]; an interval of 95% takes 6 rounds"
    values = "lowest and highest" if not rank else f"values {rank + 1} and {n - rank} in order"
    return f"median of {n} rounds [its {coverage(n, rank):.1%} interval by order statistics: {values}]"


# ---- measuring


class Contender:
    """A norm in a mode (eager, compiled, stacked), compiled unless eager, and warmed up; its stack has `members` runs.

    `steps` and `forwards` are training steps and forward passes a second, over all members, one value for each round.
    """

    def __init__(self, config: RunConfig, mode: str, members: int, data: Data) -> None:
        self.config, self.mode, self.members = config, mode, members
        device = pick_device(config.device)
        self.watch = Stopwatch(device)
        seeds = range(config.seed, config.seed + members)
        configs = [replace(config, seed=seed, compile=mode != "eager") for seed in seeds]
        self.stack = Stack(configs, data, device, decide_compilation(configs[0]).compiled)
        batches = batches_of(configs, len(data.train), device)
        self.batches = [batches.batch(step) for step in range(PREPARED)]
        self.forward = make_forward(self.stack)
        self.steps: list[float] = []
        self.forwards: list[float] = []
        self.compile_seconds = self.warm_up()

    def warm_up(self) -> float:
        """Run the training step and the forward pass before they are measured, which compiles them.

        Returns the seconds that this took, 0 where the mode is not compiled.
        """
        start = self.watch.now()
        self.stack.warm_up(self.batches[0])
        self.forward(self.batches[0])
        return self.watch.now() - start if self.stack.compiled else 0.0

    def measure(self, seconds: float) -> None:
        """Measure one round: the rates of the training step and of the forward pass, each over at least `seconds`."""
        self.steps.append(self.rate(partial(self.stack.update, 0), seconds))
        self.forwards.append(self.rate(self.forward, seconds))

    def rate(self, call: Callable[[Batch], object], seconds: float) -> float:
        """Return the calls a second, times the number of members, measured over at least `seconds`."""
        batches, calls = cycle(self.batches), 0
        per_look = 50 if self.watch.device.type == "cuda" else 1  # each look at the clock waits for CUDA
        for batch in self.batches[:UNTIMED]:
            call(batch)
        start = self.watch.now()
        while (passed := self.watch.now() - start) < seconds or not calls:
            for _ in range(per_look):
                call(next(batches))
            calls += per_look
        return calls * self.members / passed


def make_forward(stack: Stack) -> Callable[[Batch], Tensor]:
    """Return the forward pass of a training step as a function: batch → loss, () or, for a mapped stack, (members,).

    It gathers the batch and runs the network in training mode, which also updates running averages; no gradient is
    computed. A stack that isn't mapped (compiled as one network, by vmap) must have one member.
    """
    loss_of = make_loss(stack.model, stack.config, stack.data)
    state = stack.state if stack.mapped else stack.members[0]

    def loss(state: MemberState, index: Tensor, crop: Tensor | None, train: Examples) -> Tensor:
        return loss_of(state.parameters, state.buffers, gather(index, crop, train))[0]

    run: Callable[..., Tensor] = loss
    if stack.mapped:
        run = vmap(loss, in_dims=dimensions(stack.config))
    if stack.compiled:
        run = Compiled(run, stack.data.scale.device)

    @torch.no_grad()
    def forward(batch: Batch) -> Tensor:
        index, crop = batch.index, batch.crop
        if not stack.mapped:
            index, crop = index[0], None if crop is None else crop[0]
        return run(state, index, crop, stack.train)

    return forward


@dataclass(frozen=True)
class Row:
    """A contender's result; rates count the steps of all members.

    `panel` is the benchmark's title. `ratio` names what the ratios divide, as "batch / none, eager"; it and the ratios
    are None for the control.
    """

    panel: str
    norm: str
    mode: str
    config: dict[str, Any]
    members: int
    threads: int
    compile_seconds: float
    steps_per_second: Spread
    forwards_per_second: Spread
    ratio: str | None
    step_ratio: Spread | None
    forward_ratio: Spread | None


def measure_benchmark(benchmark: Benchmark, options: BenchOptions, tick: Callable[..., None]) -> list[Row]:
    """Measure all contenders of a benchmark in interleaved rounds: each round measures every contender once.

    `tick` is called with `description` before each contender is prepared and before each of its measurements.
    """
    control = benchmark.runs[0]
    device = pick_device(control.device)
    prepare_torch(control, device)  # as training does; before compiling, which fixes the number of threads
    threads = thread_count(control, device)
    data, contenders = load_data(control.dataset), list[Contender]()
    for mode, config in product(benchmark.modes, benchmark.runs):
        tick(description=f"{config.norm.name}, {mode}: {'preparing' if mode == 'eager' else 'compiling'}")
        contenders.append(Contender(config, mode, options.stack if mode == "stacked" else 1, data))
        data = contenders[-1].stack.data  # placed on the device once
    gc.collect()  # would otherwise take a quarter of a second of the first round, after compilation
    for number in range(options.rounds):
        for contender in contenders:
            tick(description=f"round {number + 1}: {contender.config.norm.name}, {contender.mode}")
            contender.measure(options.seconds)
    controls = {contender.mode: contender for contender in contenders if contender.config.norm.name == CONTROL}
    return [make_row(benchmark.title, contender, controls[contender.mode], threads) for contender in contenders]


def make_row(title: str, contender: Contender, control: Contender, threads: int) -> Row:
    """Return a contender's result, with its ratios to `control`, the contender without a norm in the same mode."""
    norm, mode, compared = contender.config.norm.name, contender.mode, contender is not control
    return Row(
        panel=title,
        norm=norm,
        mode=mode,
        config=contender.config.as_dict(),
        members=contender.members,
        threads=threads,
        compile_seconds=contender.compile_seconds,
        steps_per_second=spread(contender.steps),
        forwards_per_second=spread(contender.forwards),
        ratio=f"{norm} / {CONTROL}, {mode}" if compared else None,
        step_ratio=ratio_of(contender.steps, control.steps) if compared else None,
        forward_ratio=ratio_of(contender.forwards, control.forwards) if compared else None,
    )


def measure_benchmarks(benchmarks: list[Benchmark], options: BenchOptions) -> dict[str, list[Row]]:
    """Measure the benchmarks, with a progress bar on a terminal, and return title → rows."""
    rows: dict[str, list[Row]] = {}
    contenders = {benchmark.title: len(benchmark.modes) * len(benchmark.runs) for benchmark in benchmarks}
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
    remaining = TimeRemainingColumn(compact=True)
    with Progress(*columns, remaining, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=sum(contenders.values()) * (1 + options.rounds))
        for benchmark in benchmarks:
            number = contenders[benchmark.title]
            measuring = duration(2 * number * options.rounds * options.seconds)
            print_line(f"{benchmark.title}: {count(number, 'contender')}, {measuring} of measuring besides compiling")
            rows[benchmark.title] = measure_benchmark(benchmark, options, partial(bar.update, task, advance=1))
    return rows
