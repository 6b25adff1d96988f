"""Steps per second of one bnexp run against a plain eager PyTorch loop: same network, data in memory, same machine.

    python scripts/bench.py [--rounds 5]

Every contender is a process of its own that waits while another works. A round times each once, in turn, so a machine
that slows down slows them all; figures are medians over rounds, ratios are taken round by round. Evaluation and
compilation are left out. Writes results/bench.json and prints the table that results/performance.md keeps.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnexp.batches import Batches, Order
from bnexp.config import ArchConfig, DatasetConfig, NormConfig, RunConfig
from bnexp.data import Data, load_data
from bnexp.engine import Stack
from bnexp.runs import machine

CPU = torch.device("cpu")
OUTPUT = Path("results/bench.json")
ROUND_SECONDS = 1.0
REST = 30.0  # idle seconds before a case: a shared machine may lend its second core for some 15 s only


@dataclass(frozen=True)
class Contender:
    arch: str
    norm: str
    threads: int
    plain: bool  # a plain PyTorch loop, or bnexp

    @property
    def name(self) -> str:
        return f"{self.arch} {self.norm}, {self.threads} thread{'s' * (self.threads > 1)}"

    def config(self) -> RunConfig:
        dataset = DatasetConfig(name="mnist")
        if self.arch == "convnet":
            dataset = DatasetConfig(name="image_folder", path="data/cifar10-jpeg")
        return RunConfig(
            dataset=dataset, arch=ArchConfig(name=self.arch), norm=NormConfig(name=self.norm), threads=self.threads
        )


def plain_mlp(norm: str) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (784, 100, 100):
        layers += [nn.Linear(inputs, 100, bias=norm == "none")]
        layers += [nn.BatchNorm1d(100)] if norm == "batch" else []
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(100, 10))


def plain_convnet(norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 64), (64, 128)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=norm == "none")]
        layers += [nn.BatchNorm2d(outputs)] if norm == "batch" else []
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(8 * 8 * 128, 256, bias=norm == "none")]
    layers += [nn.BatchNorm1d(256)] if norm == "batch" else []
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(256, 10))


def plain_loop(contender: Contender, data: Data) -> Callable[[int], None]:
    """The loop that most people would write, with the data in memory."""
    model = plain_mlp(contender.norm) if contender.arch == "mlp" else plain_convnet(contender.norm)
    if contender.arch == "convnet":
        model = model.to(memory_format=torch.channels_last)
        data = data.to(CPU, torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    order = Order(0, len(data.train), 60)
    pixels, labels = data.train.pixels, data.train.labels

    def step(number: int) -> None:
        index: Tensor = order.batch(number)
        optimizer.zero_grad()
        F.cross_entropy(model(pixels[index].float() / 255), labels[index]).backward()
        optimizer.step()

    return step


def bnexp_run(contender: Contender, data: Data) -> Callable[[int], None]:
    stack = Stack([contender.config()], data, CPU)
    batches = Batches([0], len(data.train), 60, False, CPU)
    stack.warm_up(batches.batch(0))

    def step(number: int) -> None:
        stack.set_rates(number)
        stack.step(batches.batch(number))

    return step


def serve(contender: Contender, pipe: Connection) -> None:
    """Answer each request for seconds of work with the steps/s that were reached."""
    torch.set_num_threads(contender.threads)
    torch.set_flush_denormal(True)
    data = load_data(contender.config().dataset)
    step = (plain_loop if contender.plain else bnexp_run)(contender, data)
    done = 0
    for done in range(20):  # warm caches
        step(done)
    pipe.send("ready")
    while (seconds := pipe.recv()) is not None:
        first, start = done, time.perf_counter()
        while (now := time.perf_counter()) < start + seconds:
            step(done)
            done += 1
        pipe.send((done - first) / (now - start))


def measure(pair: tuple[Contender, Contender], rounds: int) -> dict[str, object]:
    """bnexp and the plain loop in turn; steps/s and the ratio, each as median, lowest and highest."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    for contender in pair:
        here, there = context.Pipe()
        context.Process(target=serve, args=(contender, there), daemon=True).start()
        assert here.recv() == "ready"
        pipes.append(here)
    time.sleep(REST)
    speeds: list[list[float]] = [[], []]
    for _ in range(rounds):
        for pipe, found in zip(pipes, speeds, strict=True):
            pipe.send(ROUND_SECONDS)
            found.append(pipe.recv())
    for pipe in pipes:
        pipe.send(None)
    ratios = [ours / plain for ours, plain in zip(*speeds, strict=True)]
    return {"what": pair[0].name, "bnexp": spread(speeds[0]), "plain": spread(speeds[1]), "ratio": spread(ratios)}


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    cores = os.cpu_count() or 1
    cases = [("mlp", norm, threads) for threads in (1, cores) for norm in ("none", "batch")]
    cases += [("convnet", norm, cores) for norm in ("none", "batch")]
    results = [measure((Contender(*case, plain=False), Contender(*case, plain=True)), rounds) for case in cases]
    facts = {"machine": machine(), "cores": cores, "torch": version("torch"), "rounds": rounds, "unit": "steps/s"}
    OUTPUT.write_text(json.dumps({**facts, "results": results}, indent=2) + "\n")
    print(f"{facts['machine']}, {cores} cores, torch {facts['torch']}, median of {rounds} rounds [lowest, highest]\n")
    print("| batch 60, SGD | bnexp, steps/s | plain eager loop, steps/s | ratio |\n|---|---:|---:|---:|")
    for row in results:
        cells = (row["what"], *(figure(row[key], digits) for key, digits in (("bnexp", 0), ("plain", 0), ("ratio", 2))))
        print(f"| {' | '.join(cells)} |")


def figure(value: dict[str, float], digits: int) -> str:
    median, low, high = (f"{value[key]:,.{digits}f}" for key in ("median", "low", "high"))
    return f"{median} [{low}, {high}]"


if __name__ == "__main__":
    main()
