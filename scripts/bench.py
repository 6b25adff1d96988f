"""bnexp beside its peers on one task: MNIST, 784-100-100-100-10, batches of 60, SGD, with batch normalization or not.

    make bench

Every contender is a process of its own (a sweep is two, started at the same moment), blocked while another works. First
each makes the same number of updates, and their test accuracies have to agree. Then come interleaved rounds: a round
times each contender once, in an order that turns from round to round. Rates are updates of a model a second, those of
all models of a sweep counted; ratios are taken within a round. Evaluation and compilation are left out, the same images
lie in memory. Writes results/bench.json and prints the tables of results/performance.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from bnexp.compare.throughput import Spread, interval_description, ratio_of, spread
from bnexp.data.load import load_data
from bnexp.runs.config import RunConfig
from bnexp.runs.directory import git_state, machine
from bnexp.sweeps.executor_config import ExecutorConfig
from bnexp.sweeps.job import Job
from bnexp.sweeps.stacks import plan_sweep
from bnexp.training.device import decide_compilation

PEERS = Path(__file__).parent / "peers"
PEERS_PYTHON = Path(".venv-bench/bin/python")  # Keras and JAX
OUTPUT = Path("results/bench.json")
TASKS = ("none", "batch")
NORMS = (*TASKS, "layer", "group", "rms")  # the tasks of the plain loop and of bnexp uncompiled
MFLOP = 26.424  # of an update: 2·60·(784·100 + 2·100·100 + 100·10) forward, as much for the weights, 2·60·21,000 inward
UPDATES = 3000  # before test accuracies are compared
AGREEMENT = 0.02
REST = 20.0  # idle seconds before the rounds: a shared machine may have lent its second core

Rates = dict[str, list[float]]  # by task, a value a round
Ratios = dict[str, dict[str, Spread]]  # by name and task


@dataclass
class Contender:
    """Processes that work at the same moment; their rates add up."""

    name: str
    commands: list[list[str]]
    tasks: tuple[str, ...] = TASKS
    rates: Rates = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)

    def start(self) -> None:
        env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "JAX_PLATFORMS": "cpu"}
        self.processes = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", bufsize=1, env=env
            )
            for command in self.commands
        ]
        for process in self.processes:
            while (line := process.stdout.readline()) != "ready\n":  # a library's greetings come before
                if not line:
                    sys.exit(f"{self.name} ended before it was ready")

    def ask(self, **request: str | float) -> None:
        for process in self.processes:
            process.stdin.write(json.dumps(request) + "\n")

    def answers(self) -> list[float]:
        return [float(process.stdout.readline()) for process in self.processes]

    def stop(self) -> None:
        for process in self.processes:
            process.stdin.close()
            process.wait()


def make_contenders(images: str, cores: int) -> list[Contender]:
    ours, theirs = ([str(path)] for path in (sys.executable, PEERS_PYTHON))

    def peer(python: list[str], name: str, *words: object) -> list[str]:
        return [*python, str(PEERS / f"{name}.py"), *map(str, words)]

    def sweep(runs: int) -> list[list[str]]:
        """A process a worker, with the stacks that bnexp would give it."""
        sizes = stack_sizes(runs, cores)
        shares = [sizes[worker::cores] for worker in range(cores)]
        return [peer(ours, "stack", 1, 100 * worker, *share) for worker, share in enumerate(shares)]

    return [
        Contender("PyTorch, DataLoader", [peer(ours, "dataloader", images, RunConfig().dataset.root)]),
        Contender("PyTorch, eager, 1 thread", [peer(ours, "eager", images, 1)], NORMS),
        Contender(f"PyTorch, eager, {cores} threads", [peer(ours, "eager", images, cores)]),
        Contender("Keras fit", [peer(theirs, "keras_fit", images)]),
        Contender("JAX jit(scan)", [peer(theirs, "jax_scan", images, 1, 0)]),
        Contender("JAX vmap(scan) of 16", [peer(theirs, "jax_scan", images, 16, 0)]),
        Contender("bnexp, uncompiled, 1 thread", [peer(ours, "stack", 1, 0, 0)], NORMS),
        Contender("bnexp, one run, 1 thread", [peer(ours, "stack", 1, 0, 1)]),
        Contender(f"bnexp, one run, {cores} threads", [peer(ours, "stack", cores, 0, 1)]),
        Contender("bnexp, sweep of 16", sweep(16)),
        Contender("bnexp, sweep of 64", sweep(64)),
        Contender("sgemm, 1 process", [peer(ours, "gemm", 1)], ("gemm",)),
        Contender(f"sgemm, {cores} processes", [peer(ours, "gemm", 1)] * cores, ("gemm",)),
        Contender(f"sgemm, {cores} threads", [peer(ours, "gemm", cores)], ("gemm",)),
    ]


def stack_sizes(runs: int, workers: int) -> list[int]:
    configs = [RunConfig(seed=seed, compile=True) for seed in range(runs)]
    jobs = [Job(c.seed, [], [], c, decide_compilation(c)) for c in configs]
    return [len(stack) for stack in plan_sweep(jobs, ExecutorConfig(workers=workers), Path()).stacks]


def check_accuracy(contenders: list[Contender]) -> None:
    """Everybody trains the same network on the same task: as many updates lead to about the same accuracy."""
    for task in NORMS:
        trained = [contender for contender in contenders if task in contender.tasks]
        for contender in trained:
            contender.ask(task=task, updates=UPDATES)
            contender.accuracy[task] = statistics.mean(contender.answers())
        middle = statistics.median(contender.accuracy[task] for contender in trained)
        for contender in trained:
            if abs(contender.accuracy[task] - middle) > AGREEMENT:
                sys.exit(f"{contender.name}, {task}: test accuracy {contender.accuracy[task]:.3f}, others {middle:.3f}")


def measure(contenders: list[Contender], rounds: int, seconds: float) -> None:
    for number in range(rounds):
        first = number * len(contenders) // rounds
        for contender in [*contenders[first:], *contenders[:first]]:
            for task in contender.tasks if "gemm" not in contender.tasks else TASKS:
                contender.ask(task=task if task in contender.tasks else "gemm", seconds=seconds)
                contender.rates.setdefault(task, []).append(sum(contender.answers()))


def better(*contenders: Contender) -> Callable[[str], list[float]]:
    """The rates of whoever is fastest at a task."""
    return lambda task: max((contender.rates[task] for contender in contenders), key=statistics.median)


def make_ratios(found: dict[str, Contender], cores: int) -> Ratios:
    stack = found["bnexp, sweep of 16"].rates
    gemm = better(found[f"sgemm, {cores} processes"], found[f"sgemm, {cores} threads"])
    eager = better(found["PyTorch, eager, 1 thread"], found[f"PyTorch, eager, {cores} threads"])
    pairs: dict[str, Callable[[str], tuple[list[float], list[float]]]] = {
        "stack_vs_dataloader": lambda task: (stack[task], found["PyTorch, DataLoader"].rates[task]),
        "stack_vs_eager": lambda task: (stack[task], eager(task)),
        "stack_vs_keras": lambda task: (stack[task], found["Keras fit"].rates[task]),
        "stack_vs_jax_vmap": lambda task: (stack[task], found["JAX vmap(scan) of 16"].rates[task]),
        "solo_vs_jax_scan": lambda task: (
            found[f"bnexp, one run, {cores} threads"].rates[task],
            found["JAX jit(scan)"].rates[task],
        ),
        "stack_fraction_of_gemm": lambda task: ([rate * MFLOP / 1e3 for rate in stack[task]], gemm(task)),
    }
    ratios = {name: {task: ratio_of(*pair(task)) for task in TASKS} for name, pair in pairs.items()}
    loop, uncompiled = found["PyTorch, eager, 1 thread"].rates, found["bnexp, uncompiled, 1 thread"].rates
    ratios["uncompiled_vs_eager"] = {norm: ratio_of(uncompiled[norm], loop[norm]) for norm in NORMS}
    for name, contender in (
        ("uncompiled", "bnexp, uncompiled, 1 thread"),
        ("stacked", "bnexp, sweep of 16"),
        ("solo", "bnexp, one run, 1 thread"),
    ):
        rates = found[contender].rates
        ratios[f"batch_cost_{name}"] = {"batch": ratio_of(rates["none"], rates["batch"])}
    return ratios


def gather_facts(rounds: int, seconds: float, found: dict[str, Contender], cores: int) -> dict[str, object]:
    many, one = (found[f"sgemm, {what}"].rates["none"] for what in (f"{cores} processes", "1 process"))
    asked = "import importlib.metadata as m; print(*map(m.version, ['keras', 'tensorflow-cpu', 'jax']))"
    versions = subprocess.run(
        [PEERS_PYTHON, "-c", asked], capture_output=True, encoding="utf-8", check=True
    ).stdout.split()
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "make bench",
        "commit": git_state(),
        "machine": machine(),
        "cores": cores,
        "cores_effective": numbers(ratio_of(many, one)),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {"torch": version("torch")} | dict(zip(("keras", "tensorflow-cpu", "jax"), versions, strict=True)),
        "rounds": rounds,
        "seconds": seconds,
        "spread": interval_description(rounds),
        "unit": "updates of a model a second; sgemm: GFLOP/s",
    }


def show(found: dict[str, Contender], ratios: Ratios) -> None:
    print(f"| updates/s, median [lowest, highest] | {' | '.join(NORMS)} | test accuracy after 3,000 updates |")
    print(f"|---|{'---:|' * len(NORMS)}---:|")
    for contender in found.values():
        cells = [spread(contender.rates[task]).text(0) if task in contender.rates else "" for task in NORMS]
        accuracy = ", ".join(f"{value:.1%}" for value in contender.accuracy.values())
        print(f"| {contender.name} | {' | '.join(cells)} | {accuracy} |")
    print(f"\n| ratio, median [lowest, highest] | {' | '.join(NORMS)} |\n|---|{'---:|' * len(NORMS)}")
    for name, values in ratios.items():
        print(f"| {name} | {' | '.join(values[task].text(2) if task in values else '' for task in NORMS)} |")


def numbers(value: Spread) -> dict[str, float]:
    return {"median": value.median, "low": value.low, "high": value.high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a measurement")
    options, cores = parser.parse_args(), len(os.sched_getaffinity(0))
    data = load_data(RunConfig().dataset)
    with tempfile.TemporaryDirectory() as folder:
        parts = (data.train, data.test)
        arrays = [array.numpy() for part in parts for array in (part.pixels.view(len(part), -1), part.labels)]
        np.savez(images := f"{folder}/images.npz", *arrays)
        found = {contender.name: contender for contender in make_contenders(images, cores)}
        for contender in found.values():
            contender.start()
    check_accuracy(list(found.values()))
    time.sleep(REST)
    measure(list(found.values()), options.rounds, options.seconds)
    for contender in found.values():
        contender.stop()
    ratios = make_ratios(found, cores)
    plain = {name: {task: numbers(value) for task, value in values.items()} for name, values in ratios.items()}
    speeds = {name: {t: asdict(spread(rates)) for t, rates in c.rates.items()} for name, c in found.items()}
    accuracies = {name: contender.accuracy for name, contender in found.items() if contender.accuracy}
    facts = gather_facts(options.rounds, options.seconds, found, cores)
    record = {**facts, "ratios": plain, "rates": speeds, "accuracy": accuracies}
    OUTPUT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    show(found, ratios)


if __name__ == "__main__":
    main()
