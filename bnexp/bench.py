"""`bnexp bench`: steps a second of every norm against none, measured.

The published comparison is 510 against 270 batches a second. What such a ratio comes out at depends on how the step is
run as much as on the norm, so it is taken within one mode (eager, compiled, stacked) and names it.
"""

import gc
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.func import vmap

from bnexp.archs.registry import check_model, stacks
from bnexp.batches import Batch, Batches
from bnexp.compiled import Compiled
from bnexp.compiler import compiler_problem
from bnexp.config import ConfigError, RunConfig, require, require_choice
from bnexp.console import console, count, duration
from bnexp.console import print_line as say
from bnexp.data import Data, load_data
from bnexp.engine import (
    Examples,
    MemberState,
    Stack,
    dimensions,
    gather,
    make_loss,
    pick_device,
    prepare_torch,
    thread_count,
)
from bnexp.norms import NORMS
from bnexp.stats import Spread, spread
from bnexp.train import Stopwatch, check

CONTROL = "none"
MODES = ("eager", "compiled", "stacked")
WORDS = ("rounds", "seconds", "stack", "modes", "out")
TITLED = ("dataset", "arch", "act", "batch_size", "norm")  # keys that a panel's title or its rows tell
PREPARED = 64  # batches made beforehand and used in turn
UNTIMED = 2  # calls before each measurement, which fill the caches again
CALLS_PER_LOOK = {"cuda": 50}  # calls between looks at the clock, each of which waits for the device; elsewhere 1


# ---- what is asked for


@dataclass(frozen=True)
class Options:
    """The words of `bnexp bench` that are no overrides of a run. seconds: of each measurement; stack: runs in one."""

    rounds: int
    seconds: float
    stack: int
    modes: list[str]
    out: Path
    norms_named: bool  # a norm that doesn't fit the network is then the user's error, otherwise left out
    command: str


def take_options(arguments: list[str]) -> tuple[Options, list[str]]:
    """Options and the overrides that are left. Raises ConfigError."""
    own, overrides = {"rounds": "9", "seconds": "0.3", "stack": "8", "modes": ",".join(MODES)}, []
    for word in arguments:
        key, equals, value = word.partition("=")
        if equals and key in WORDS:
            own[key] = value
        else:
            require(key != "compile", key, value, f"choose modes= from {', '.join(MODES)}")
            overrides.append(word)
    modes = own["modes"].split(",")
    for mode in modes:
        require_choice("modes", mode, MODES)
    require(own.get("out") != "", "out", "", "a directory")
    options = Options(
        rounds=whole_number("rounds", own["rounds"], 1, 1000),
        seconds=seconds_of(own["seconds"]),
        stack=whole_number("stack", own["stack"], 2, 1024),
        modes=list(dict.fromkeys(modes)),
        out=Path(own.get("out", f"results/bench/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")),
        norms_named=any(is_norm(word) for word in overrides),
        command=shlex.join(["bnexp", "bench", *arguments]),
    )
    return options, overrides


def whole_number(key: str, value: str, low: int, high: int) -> int:
    try:
        number = int(value)
    except ValueError:
        number = low - 1
    require(low <= number <= high, key, value, f"a whole number from {low} to {high}")
    return number


def seconds_of(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    require(0 < seconds <= 60, "seconds", value, "a number above 0 and up to 60")
    return seconds


def is_norm(word: str) -> bool:
    return word.split("=", maxsplit=1)[0].lstrip("+") == "norm"


def with_norms(jobs: list[list[str]]) -> list[list[str]]:
    """The overrides of every contender: each job with the norms that it doesn't name, and with the control."""
    panels: dict[tuple[str, ...], list[str]] = {}
    for job in jobs:
        panel = tuple(word for word in job if not is_norm(word))
        panels.setdefault(panel, []).extend(word for word in job if is_norm(word))
    found = []
    for panel, named in panels.items():
        norms = dict.fromkeys([f"norm={CONTROL}", *(named or (f"norm={norm}" for norm in NORMS))])
        found += [[*panel, norm] for norm in norms]
    return found


@dataclass(frozen=True)
class Panel:
    """What a ratio compares: one network and batch size, a run a norm. left_out: mode or norm → why."""

    title: str
    runs: list[RunConfig]
    modes: list[str]
    left_out: dict[str, str]


def make_panels(jobs: list[list[str]], runs: list[RunConfig], options: Options) -> list[Panel]:
    """Everything checked. Raises ConfigError, also where no mode is left."""
    grouped: dict[tuple[str, ...], list[RunConfig]] = {}
    for job, run in zip(jobs, runs, strict=True):
        others = (word for word in job if word.split("=", maxsplit=1)[0].lstrip("+") not in TITLED)
        title = (run.dataset.name, run.arch.name, run.act.name, f"batch {run.batch_size}", *others)
        grouped.setdefault(title, []).append(run)
    panels = [make_panel(", ".join(title), found, options) for title, found in grouped.items()]
    if not any(panel.modes for panel in panels):
        reasons = dict.fromkeys(panels[0].left_out[mode] for mode in options.modes)
        raise ConfigError(f"modes={','.join(options.modes)} is not allowed: {'; '.join(reasons)}")
    return panels


def make_panel(title: str, runs: list[RunConfig], options: Options) -> Panel:
    left_out: dict[str, str] = {}
    control = next(run for run in runs if run.norm.name == CONTROL)
    check(control)
    data, fitting = load_data(control.dataset), []
    for run in runs:
        try:
            check_model(run, data.shape, data.classes)
            fitting.append(run)
        except ConfigError as error:
            if options.norms_named:
                raise
            left_out[f"norm={run.norm.name}"] = str(error)
    for mode in options.modes:
        reason = mode_problem(mode, control)
        left_out |= {mode: reason} if reason else {}
    return Panel(title, fitting, [mode for mode in options.modes if mode not in left_out], left_out)


def mode_problem(mode: str, config: RunConfig) -> str | None:
    """Why a run doesn't have this mode, or None."""
    problem = compiler_problem(pick_device(config.device).type) if mode != "eager" else None
    if problem:
        return problem
    return f"arch={config.arch.name} doesn't stack" if mode == "stacked" and not stacks(config) else None


# ---- measuring


class Contender:
    """A norm in a mode, compiled and warm. `steps` and `forwards`: a second, one value a round, over all members."""

    def __init__(self, config: RunConfig, mode: str, members: int, data: Data) -> None:
        self.config, self.mode, self.members = config, mode, members
        seeds = list(range(config.seed, config.seed + self.members))
        device = pick_device(config.device)
        self.watch = Stopwatch(device)
        self.stack = Stack([replace(config, seed=seed, compile=mode != "eager") for seed in seeds], data, device)
        batches = Batches(seeds, len(data.train), config.batch_size, config.dataset.augment != "none", device)
        self.batches = [batches.batch(step) for step in range(PREPARED)]
        self.forward = make_forward(self.stack)
        self.steps: list[float] = []
        self.forwards: list[float] = []
        self.compile_seconds = self.warm_up()

    def warm_up(self) -> float:
        """Seconds that compiling took; 0 uncompiled."""
        start = self.watch.now()
        self.stack.warm_up(self.batches[0])
        self.forward(self.batches[0])
        return self.watch.now() - start if self.stack.compiled else 0.0

    def measure(self, seconds: float) -> None:
        self.steps.append(self.rate(partial(self.stack.update, 0), seconds))
        self.forwards.append(self.rate(self.forward, seconds))

    def rate(self, call: Callable[[Batch], object], seconds: float) -> float:
        """Calls a second times members, over `seconds` or a little more."""
        batches, calls = cycle(self.batches), 0
        per_look = CALLS_PER_LOOK.get(self.watch.device.type, 1)
        for batch in self.batches[:UNTIMED]:
            call(batch)
        start = self.watch.now()
        while (passed := self.watch.now() - start) < seconds or not calls:
            for _ in range(per_look):
                call(next(batches))
            calls += per_look
        return calls * self.members / passed


def make_forward(stack: Stack) -> Callable[[Batch], Tensor]:
    """A step's forward pass alone: gather the batch, the network in training mode, the loss (a member); no gradient."""
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
    """A contender's result. Rates count every member's steps; `ratio` says what the ratios divide, in which mode; the
    control has none.
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


def measure_panel(panel: Panel, options: Options, tick: Callable[[str], None]) -> list[Row]:
    """Interleaved: a round measures every contender once, those of a mode one after the other."""
    control = panel.runs[0]
    device = pick_device(control.device)
    prepare_torch(control, device)  # as training does; before compiling, which builds the number of threads in
    threads = thread_count(control, device)
    data, contenders = load_data(control.dataset), list[Contender]()
    for mode, config in product(panel.modes, panel.runs):
        tick(f"{config.norm.name}, {mode}: {'preparing' if mode == 'eager' else 'compiling'}")
        contenders.append(Contender(config, mode, options.stack if mode == "stacked" else 1, data))
        data = contenders[-1].stack.data  # placed on the device once
    gc.collect()  # what compilation left; otherwise a quarter of a second within the first round
    for number in range(options.rounds):
        for contender in contenders:
            tick(f"round {number + 1}: {contender.config.norm.name}, {contender.mode}")
            contender.measure(options.seconds)
    controls = {contender.mode: contender for contender in contenders if contender.config.norm.name == CONTROL}
    return [make_row(panel.title, contender, controls[contender.mode], threads) for contender in contenders]


def make_row(panel: str, contender: Contender, control: Contender, threads: int) -> Row:
    norm, mode, compared = contender.config.norm.name, contender.mode, contender is not control
    return Row(
        panel=panel,
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


def ratio_of(values: list[float], control: list[float]) -> Spread:
    """Round by round: a machine that slows down slows both."""
    return spread([value / base for value, base in zip(values, control, strict=True)])


def measure_panels(panels: list[Panel], options: Options) -> dict[str, list[Row]]:
    """Rows by their panel's title, with a bar while they are measured."""
    rows: dict[str, list[Row]] = {}
    contenders = {panel.title: len(panel.modes) * len(panel.runs) for panel in panels}
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=sum(contenders.values()) * (1 + options.rounds))
        for panel in panels:
            number = contenders[panel.title]
            measuring = duration(2 * number * options.rounds * options.seconds)
            say(f"{panel.title}: {count(number, 'contender')}, {measuring} of measuring besides compiling")
            rows[panel.title] = measure_panel(panel, options, partial(advance, bar, task))
    return rows


def advance(bar: Progress, task: TaskID, doing: str) -> None:
    bar.update(task, advance=1, description=doing)
