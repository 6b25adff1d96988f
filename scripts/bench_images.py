"""bnexp's step beside plain PyTorch loops, for every architecture for images: images a second in interleaved rounds.

    python scripts/bench_images.py [--rounds 5] [--seconds 1] [--only resnet,lenet] [--out results/bench_images.json]

All train the same network (3×32×32, batches of 128, SGD with momentum) on the same uint8 images in memory. The plain
loop has torch's own norms, torch.optim.SGD, channels_last, and autocast for bf16; once its network is given to
torch.compile. Each contender is a process of its own with every core, blocked while another works. Evaluation and
compilation are left out of the rates; the seconds until a contender is ready are recorded. Prints a table in Markdown.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
from bench import Contender, numbers
from peers.serve import Task, serve
from plain import Loop

from bnexp.cli.compose import configurations
from bnexp.compare.throughput import ratio_of, spread
from bnexp.data.batches import Batches
from bnexp.data.images import Images
from bnexp.data.load import Data
from bnexp.runs.config import RunConfig
from bnexp.runs.directory import git_state, machine
from bnexp.training.device import prepare_torch, usable_cores
from bnexp.training.engine import Stack

WORDS = {
    "convnet": ["arch=convnet"],
    "lenet": ["arch=lenet"],
    "vgg": ["arch=vgg"],
    "resnet 8": ["arch=resnet", "arch.depth=8"],
    "resnet 20": ["arch=resnet"],
    "densenet 40": ["arch=densenet"],
}
BASE = ["dataset=cifar10", "optim=momentum", "optim.lr=0.01", "optim.momentum=0.9", "batch_size=128", "device=cpu"]
COUNT = 2048
CONTENDERS = {  # name → whether it is bnexp, and whether it is compiled
    "plain loop": (False, False),
    "plain loop, torch.compile": (False, True),
    "bnexp, uncompiled": (True, False),
    "bnexp, compiled": (True, True),
}
CPU = torch.device("cpu")


def make_data() -> Data:
    random = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (COUNT, 3, 32, 32), generator=random).to(torch.uint8)
    images = Images(pixels, torch.randint(0, 10, (COUNT,), generator=random))
    return Data(images, images, images, 10, torch.full((3, 1, 1), 1 / 255), torch.zeros(3, 1, 1), "noise")


def bnexp_step(config: RunConfig, data: Data, compiled: bool) -> Callable[[int], object]:
    prepare_torch(config, CPU)
    stack = Stack([config], data, CPU, compiled)
    batches = Batches([0], COUNT, config.batch_size, False, CPU)
    return lambda number: stack.step(batches.batch(number))


def serve_contender(name: str, words: list[str]) -> None:
    """Be one of CONTENDERS."""
    with configurations() as composer:
        config = composer.compose_run(words)
    data, (ours, compiled) = make_data(), CONTENDERS[name]
    torch.set_num_threads(usable_cores())
    step = bnexp_step(config, data, compiled) if ours else Loop(config, data, compiled).make_step()
    made = 0

    def train(updates: int) -> None:
        nonlocal made
        for _ in range(updates):
            step(made)
            made += 1

    serve({"images": Task(train, lambda: float("nan"), chunk=1, worth=config.batch_size)})


def measure(words: list[str], rounds: int, seconds: float) -> dict[str, object]:
    """Rates of all contenders, the seconds until each was ready, and the ratios to the plain loop."""
    contenders, ready = [], {}
    for name in CONTENDERS:
        contender = Contender(name, [[sys.executable, __file__, "--contender", name, *words]])
        start = time.perf_counter()
        contender.start()
        ready[name] = round(time.perf_counter() - start, 1)
        contenders.append(contender)
    rates: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for number in range(rounds):
        for contender in contenders[:: 1 if number % 2 else -1]:
            contender.ask(task="images", seconds=seconds)
            rates[contender.name] += contender.answers()
    for contender in contenders:
        contender.stop()
    ratios = {name: numbers(ratio_of(values, rates["plain loop"])) for name, values in rates.items()}
    return {"rates": {n: numbers(spread(r)) for n, r in rates.items()}, "ratios": ratios, "seconds_until_ready": ready}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", default=",".join(WORDS))
    parser.add_argument("--out", type=Path, default=Path("results/bench_images.json"))
    parser.add_argument("--contender", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        serve_contender(options.contender[0], options.contender[1:])
        return
    results = []
    print(f"| images/s, ratio to the plain loop | {' | '.join(CONTENDERS)} |\n|---|{'---:|' * len(CONTENDERS)}")
    for arch, norm, precision in product(options.only.split(","), ("none", "batch"), ("fp32", "bf16")):
        words = [*BASE, *WORDS[arch], f"norm={norm}", f"precision={precision}"]
        result = measure(words, options.rounds, options.seconds)
        results.append({"arch": arch, "norm": norm, "precision": precision, **result})
        print(f"| {arch}, {norm}, {precision} | {' | '.join(cells(result))} |", flush=True)
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": git_state(),
        "machine": machine(),
        "cores": usable_cores(),
        "torch": version("torch"),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "results": results,
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def cells(result: dict[str, object]) -> list[str]:
    def text(name: str) -> str:
        rate, ratio = result["rates"][name], result["ratios"][name]
        own = f"{rate['median']:,.0f}"
        return (
            own if name == "plain loop" else f"{own}, {ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
        )

    return [text(name) for name in CONTENDERS]


if __name__ == "__main__":
    main()
