"""bnexp's step beside a plain PyTorch loop, for every architecture for images: images a second in interleaved rounds.

    python scripts/bench_images.py [--rounds 7] [--seconds 2] [--out results/bench_images.json]

Both train the same network (3×32×32, batches of 128, SGD with momentum) on the same uint8 images in memory; the plain
loop has torch's own norms, torch.optim.SGD, channels_last, and autocast for bf16. They take turns in one process, with
every core. Evaluation is left out. Prints a table in Markdown.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from plain import with_torchs_norms

from bnexp.cli.compose import configurations
from bnexp.compare.throughput import Spread, ratio_of, spread
from bnexp.data.batches import Batches
from bnexp.data.images import Images
from bnexp.data.load import Data
from bnexp.models.registry import make_model
from bnexp.runs.config import RunConfig
from bnexp.runs.directory import git_state, machine
from bnexp.training.engine import Stack

WORDS = {
    "convnet": ["arch=convnet"],
    "lenet": ["arch=lenet"],
    "vgg": ["arch=vgg"],
    "resnet 8": ["arch=resnet", "arch.depth=8"],
    "resnet 20": ["arch=resnet"],
    "densenet 40": ["arch=densenet"],
}
BATCH, COUNT, LR, MOMENTUM = 128, 2048, 0.01, 0.9
FEW = 2  # steps before the clock runs


@dataclass(frozen=True)
class Result:
    arch: str
    norm: str
    precision: str
    bnexp: Spread
    plain: Spread
    ratio: Spread


def make_data() -> Data:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (COUNT, 3, 32, 32), generator=random).to(torch.uint8)
    images = Images(pixels, torch.randint(0, 10, (COUNT,), generator=random))
    return Data(images, images, images, 10, torch.full((3, 1, 1), 1 / 255), torch.zeros(3, 1, 1), "noise")


def bnexp_step(config: RunConfig, data: Data) -> Callable[[int], object]:
    stack = Stack([config], data, torch.device("cpu"), compiled=False)
    batches = Batches([0], COUNT, BATCH, False, torch.device("cpu"))
    return lambda number: stack.step(batches.batch(number))


def plain_step(config: RunConfig, data: Data) -> Callable[[int], object]:
    model = with_torchs_norms(make_model(config, data.shape, 10, device="cpu")).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    order = torch.randperm(COUNT)

    def step(number: int) -> None:
        index = order[(start := number * BATCH % COUNT) : start + BATCH]
        x = (data.train.pixels[index].float() / 255).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            loss = F.cross_entropy(model(x), data.train.labels[index])
        loss.backward()
        optimizer.step()

    return step


def images_per_second(step: Callable[[int], object], seconds: float) -> float:
    start, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds or not done:
        step(done)
        done += 1
    return done * BATCH / passed


def compare(words: list[str], norm: str, precision: str, rounds: int, seconds: float) -> tuple[Spread, Spread, Spread]:
    base = ["dataset=cifar10", "optim=momentum", f"optim.lr={LR}", f"optim.momentum={MOMENTUM}", f"batch_size={BATCH}"]
    with configurations() as composer:
        config = composer.compose_run([*base, *words, f"norm={norm}", f"precision={precision}", "compile=false"])
    data = make_data()
    steps = {"bnexp": bnexp_step(config, data), "plain": plain_step(config, data)}
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        for number in range(FEW):
            step(number)
    for number in range(rounds):
        for name in sorted(steps, reverse=number % 2 == 1):
            rates[name].append(images_per_second(steps[name], seconds))
    return spread(rates["bnexp"]), spread(rates["plain"]), ratio_of(rates["bnexp"], rates["plain"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=Path("results/bench_images.json"))
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_flush_denormal(True)
    results = []
    print("| images/s, median [lowest, highest] | bnexp | plain loop | ratio |\n|---|---:|---:|---:|")
    for (name, words), norm, precision in product(WORDS.items(), ("none", "batch"), ("fp32", "bf16")):
        result = Result(name, norm, precision, *compare(words, norm, precision, options.rounds, options.seconds))
        results.append(result)
        cells = (result.bnexp.text(0), result.plain.text(0), result.ratio.text(2))
        print(f"| {name}, {norm}, {precision} | {' | '.join(cells)} |", flush=True)
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": git_state(),
        "machine": machine(),
        "cores": os.cpu_count(),
        "torch": version("torch"),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "results": [asdict(result) for result in results],
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
