"""The parts of device_check.py, each a process: device_parts.py PART [WORD …] DEVICE DATA SECONDS [--small].

agreement and table print a JSON object a line as results come; the others are served: they print what is prepared, as
long as there are seconds, and then answer requests for rates (peers/serve.py). `--small` is for a test on the CPU:
embedded digits, few steps, nothing compiled.
"""

import faulthandler
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from plain import Loop, graphed
from serve import Task, serve
from torch import Tensor
from torch.func import vmap

from bnexp.data.batches import Batches
from bnexp.data.images import Images
from bnexp.data.load import Data, load_data
from bnexp.runs.config import (
    ActConfig,
    ArchConfig,
    DatasetConfig,
    EvalConfig,
    InitConfig,
    NormConfig,
    OptimConfig,
    RunConfig,
)
from bnexp.runs.directory import Launch
from bnexp.training.device import decide_compilation, prepare_torch
from bnexp.training.engine import Stack, dimensions, make_step
from bnexp.training.loop import train_together
from bnexp.training.member import Member, create_or_reopen_run
from bnexp.training.timing import Stopwatch

NORMS = ("none", "batch")
COMPANY = (2, 8, 64)  # members of the stacks that a run alone is compared with
AGREEMENT_STEPS = 500
STDS, LEARNING_RATES, SEEDS, TABLE_STEPS = (0.05, 5.0), (0.01, 1.0, 2.0), 10, 50_000
LESSON_NORM = {"eps": 1e-3, "momentum": 0.01, "unbiased": False}  # conf/experiment/udacity.yaml
COPIED = 2**31  # bytes that the memory's limit is measured with
SGEMM = 8192  # its matrices' side
Answer = Callable[[int], object]
Make = Callable[[], tuple[Answer, Callable[[], float], float]]  # step, accuracy, members


@dataclass(frozen=True)
class Setup:
    """device: cpu or cuda; data: the folder of the data sets; seconds: after which nothing more is prepared."""

    device: str
    data: str
    small: bool
    seconds: float = math.inf

    def run(self, norm: str, **changes: Any) -> RunConfig:
        """A run of the lesson."""
        return RunConfig(dataset=self.dataset(), norm=NormConfig(norm), **self.surroundings(), **changes)

    def image_run(self, precision: str, dataset: DatasetConfig) -> RunConfig:
        """ResNet-20 with batch normalization as He et al. 2016 trained it, but for a constant learning rate."""
        return RunConfig(
            dataset=dataset,
            arch=ArchConfig("resnet", depth=8 if self.small else 20, channels=[8] * 3 if self.small else [16, 32, 64]),
            init=InitConfig("kaiming"),
            optim=OptimConfig("momentum", lr=0.05, weight_decay=1e-4),
            batch_size=16 if self.small else 128,
            precision=precision,
            **self.surroundings(),
        )

    def dataset(self) -> DatasetConfig:
        return DatasetConfig("digits", validation=200) if self.small else DatasetConfig("mnist", self.data)

    def surroundings(self) -> dict[str, Any]:
        return {"device": self.device, "compile": not self.small, "threads": 1 if self.small else "auto"}


def emit(**found: object) -> None:
    print(json.dumps(found), flush=True)


# ---- agreement


def agreement(setup: Setup, norm: str) -> None:
    """After 500 steps, how far a run's parameters are from those it has otherwise: in company, uncompiled, on a CPU."""
    run = setup.run(norm)
    steps, company = (5, (2,)) if setup.small else (AGREEMENT_STEPS, COMPANY)
    alone = parameters_after(steps, [run])

    def compare(other: str, found: dict[str, Tensor]) -> None:
        furthest = max(float((found[name] - alone[name]).abs().max()) for name in alone)
        largest = max(float(tensor.abs().max()) for tensor in alone.values())
        emit(norm=norm, steps=steps, other=other, difference=furthest, largest_parameter=largest)

    compare("the same run once more", parameters_after(steps, [run]))
    for size in company:
        compare(f"in a stack of {size}", parameters_after(steps, [replace(run, seed=seed) for seed in range(size)]))
    compare("uncompiled", parameters_after(steps, [replace(run, compile=False)]))
    compare("on the CPU, uncompiled", parameters_after(steps, [replace(run, device="cpu", compile=False)]))


def parameters_after(steps: int, runs: list[RunConfig]) -> dict[str, Tensor]:
    """Of the first of these."""
    stack, step = bnexp_step(runs, load_data(runs[0].dataset))
    for number in range(steps):
        step(number)
    return {name: tensor.cpu().clone() for name, tensor in stack.members[0].parameters.items()}


def bnexp_step(runs: list[RunConfig], data: Data) -> tuple[Stack, Answer]:
    """A stack, compiled and warm, and the update that follows a number of others."""
    run, device = runs[0], torch.device(runs[0].device)
    prepare_torch(run, device)
    stack = Stack(runs, data, device, decide_compilation(runs[0]).compiled)
    batches = Batches([r.seed for r in runs], len(data.train), run.batch_size, run.dataset.augment != "none", device)
    stack.warm_up(batches.batch(0))
    return stack, lambda number: stack.update(number, batches.batch(number))


# ---- the published table


def table(setup: Setup, norm: str, act: str) -> None:
    """The lesson's cells of a norm and an activation, all seeds of them in one stack; a line a run."""
    seeds, steps = (1, 20) if setup.small else (SEEDS, TABLE_STEPS)
    base = setup.run(norm, act=ActConfig(act), steps=steps, eval=EvalConfig(1_000, 2_000, 10_000))
    base = replace(base, norm=NormConfig(norm, **LESSON_NORM))
    runs = [
        replace(base, init=InitConfig(std=std), optim=OptimConfig(lr=lr), seed=seed)
        for std, lr, seed in product(STDS, LEARNING_RATES, range(seeds))
    ]
    with TemporaryDirectory() as folder:
        launches = [Launch(Path(folder, str(i)), [], i, decide_compilation(run)) for i, run in enumerate(runs)]
        members = [create_or_reopen_run(run, launch, len(runs)) for run, launch in zip(runs, launches, strict=True)]
        train_together(members)
    for member in members:
        if not isinstance(member.outcome, dict):
            sys.exit(str(member.outcome))
        show_run(member, member.outcome)


def show_run(member: Member, outcome: dict[str, Any]) -> None:
    """A run's line: its cell, its validation accuracy after 2,000 steps and in the end, and its test accuracy."""
    run, accuracy = member.config, dict(zip(member.steps, member.accuracy, strict=True))
    cell = {"norm": run.norm.name, "act": run.act.name, "std": run.init.std, "lr": run.optim.lr, "seed": run.seed}
    scores = {key: outcome[key] for key in ("status", "validation", "test")}
    emit(**cell, validation_at_2000=accuracy.get(2_000), **scores)


# ---- rates


def mlp(setup: Setup, norm: str, *sizes: str) -> Iterator[tuple[str, Make]]:
    """The lesson's network in stacks of these sizes; with the first size what is no stack."""
    run, data = setup.run(norm), load_data(setup.dataset())
    if "1" in sizes:
        yield "plain loop, eager", lambda: (Loop(run, data).make_step(), no_accuracy, 1)
        yield "bnexp, one run, uncompiled", lambda: one_stack([replace(run, compile=False)], data)
    for size in map(int, sizes):
        stacked = cache(partial(one_stack, [replace(run, seed=seed) for seed in range(size)], data))
        yield f"bnexp, stack of {size}", stacked
        if setup.device == "cuda":
            yield f"bnexp, stack of {size}, guards skipped", lambda stacked=stacked: unguarded(*stacked())


def graphs(setup: Setup, norm: str, *sizes: str) -> Iterator[tuple[str, Make]]:
    """What CUDA graphs make of the same: of a plain loop, and of bnexp's step without torch.compile's checks."""
    run, data = setup.run(norm), load_data(setup.dataset())
    if "1" in sizes:
        yield "plain loop, CUDA graph", lambda: (Loop(run, data, graph=True).make_step(), no_accuracy, 1)
    for size in map(int, sizes):
        runs = [replace(run, seed=seed) for seed in range(size)]
        yield f"bnexp, stack of {size}, graph by hand", lambda runs=runs: by_hand(runs, data)


def one_stack(runs: list[RunConfig], data: Data) -> tuple[Answer, Callable[[], float], float]:
    stack, step = bnexp_step(runs, data)
    return step, lambda: stack.evaluate(0, stack.data.test).accuracy, len(runs)


def no_accuracy() -> float:
    return float("nan")


def unguarded(step: Answer, accuracy: Callable[[], float], members: float) -> tuple[Answer, Callable[[], float], float]:
    """What torch.compile's checks of each call cost: without them."""

    def train(number: int) -> None:
        with torch.compiler.set_stance("default", skip_guard_eval_unsafe=True):
            step(number)

    return train, accuracy, members


def by_hand(runs: list[RunConfig], data: Data) -> tuple[Answer, Callable[[], float], float]:
    """The same kernels in a CUDA graph that nobody checks: what there is to win."""
    device = torch.device(runs[0].device)
    prepare_torch(runs[0], device)
    stack = Stack(runs, data, device, decide_compilation(runs[0]).compiled)
    batches = Batches([run.seed for run in runs], len(data.train), runs[0].batch_size, False, device)
    member = vmap(make_step(stack.model, stack.config, stack.data), in_dims=dimensions(stack.config))
    step, index = torch.compile(member, fullgraph=True, dynamic=False), batches.batch(0).index.clone()
    replay = graphed(lambda: step(stack.state, index, None, stack.train))

    def train(number: int) -> None:
        index.copy_(batches.batch(number).index)
        replay()

    return train, no_accuracy, len(runs)


def images(setup: Setup, precision: str) -> Iterator[tuple[str, Make]]:
    """ResNet-20 on noise, since rates don't depend on what an image shows."""
    run, data = setup.image_run(precision, DatasetConfig("digits")), noise(64 if setup.small else 10_000)
    batch = run.batch_size
    yield "bnexp", lambda: (*one_stack([run], data)[:2], batch)
    yield "plain loop, torch.compile", lambda: (Loop(run, data, not setup.small).make_step(), no_accuracy, batch)


def photographs(setup: Setup, precision: str) -> Iterator[tuple[str, Make]]:
    """ResNet-20 on CIFAR-10's photographs, with flips and crops: what it scores after a while."""
    place = Path(setup.data, "cifar10-jpeg")
    dataset = DatasetConfig("image_folder", setup.data, str(place), augment="flip_crop", standardize=True)
    run = setup.image_run(precision, dataset)
    yield "bnexp", lambda: (*one_stack([run], load_data(dataset))[:2], run.batch_size)


def noise(count: int) -> Data:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=random).to(torch.uint8)
    found = Images(pixels, torch.randint(0, 10, (count,), generator=random))
    return Data(found, found, found, 10, torch.full((3, 1, 1), 1 / 255), torch.zeros(3, 1, 1), "noise")


def limits(setup: Setup) -> Iterator[tuple[str, Make]]:
    """What the device gives: GB/s, read and written, of a copy; TFLOP/s of a product of large matrices in fp32, and of
    the first layer's products of 512 members.
    """
    device, share = torch.device(setup.device), 256 if setup.small else 1
    source, target = (torch.rand(COPIED // 4 // share, device=device) for _ in range(2))
    side, members = SGEMM // share, 512 // share
    left, right, product = (torch.randn(side, side, device=device) for _ in range(3))
    x, weights = torch.randn(members, 60, 784, device=device), torch.randn(members, 784, 100, device=device)

    def of(call: Callable[[], object], worth: float) -> Make:
        return lambda: (lambda _: call(), no_accuracy, worth)

    yield "copy, GB/s", of(lambda: target.copy_(source), 8 * len(source) / 1e9)
    yield "sgemm, TFLOP/s", of(lambda: torch.mm(left, right, out=product), 2 * side**3 / 1e12)
    yield "first layer of 512 members, TFLOP/s", of(lambda: torch.bmm(x, weights), members * 2 * 60 * 784 * 100 / 1e12)


SERVED = {"mlp": mlp, "graphs": graphs, "images": images, "photographs": photographs, "limits": limits}
CHUNK = {"mlp": 100, "graphs": 100, "images": 20, "photographs": 20, "limits": 5}  # steps between looks at the clock


def make_tasks(setup: Setup, part: str, arguments: list[str]) -> dict[str, Task]:
    """What of a part can be prepared in time; a line each, also for the rest, which is left out."""
    tasks, watch, began = dict[str, Task](), Stopwatch(torch.device(setup.device)), time.monotonic()
    for name, make in SERVED[part](setup, *arguments):
        problem = None if time.monotonic() - began < setup.seconds else "no time was left to prepare it"
        try:
            if problem is None:
                tasks[name] = make_task(*make(), watch, 2 if setup.small else CHUNK[part])
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"[:1000]
        emit(task=name, problem=problem, seconds=round(time.monotonic() - began, 1))
    return tasks


def make_task(step: Answer, accuracy: Callable[[], float], worth: float, watch: Stopwatch, chunk: int) -> Task:
    task = Task(lambda _: None, accuracy, chunk, worth)

    def train(updates: int) -> None:
        for number in range(task.done, task.done + updates):
            step(number)
        watch.now()  # waits for the device

    task.train = train
    task.advance(1)
    return task


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--small"]
    part, arguments, setup = words[0], words[1:-3], Setup(*words[-3:-1], "--small" in sys.argv, float(words[-1]))
    faulthandler.dump_traceback_later(setup.seconds + 20, repeat=True)  # to tell what takes so long
    if part in SERVED:
        serve(make_tasks(setup, part, arguments))
    else:
        {"agreement": agreement, "table": table}[part](setup, *arguments)
