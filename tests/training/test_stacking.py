"""Stacking never changes a curve: a member's files are the same bytes alone and in any company.

Where a build of torch breaks this, these tests fail and name it: the README tells the builds it holds on.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from builders import IMAGES_ONLY
from test_engine import check_warm_up_moves_nothing, trained

import bnexp.training.loop
from bnexp.data.load import load_data
from bnexp.models.norm_registry import NORMS
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
from bnexp.runs.directory import CHECKPOINT, METRICS, Launch
from bnexp.training.compiler import has_compiler
from bnexp.training.device import decide_compilation
from bnexp.training.loop import train_together
from bnexp.training.member import create_or_reopen_run

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler (g++ or clang++)")
GRAPHS = list(product(sorted(set(NORMS) - IMAGES_ONLY), ("relu", "sigmoid"), ("sgd", "momentum", "adam")))
DRAWS = max(50, len(GRAPHS))
BUILD = f"torch {torch.__version__} on {torch.backends.cpu.get_cpu_capability()}"
DIVERGES = 1e30  # a learning rate


@pytest.fixture(autouse=True)
def repack_at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """However short the run, a stack that has lost half of its members is packed anew."""
    monkeypatch.setattr(bnexp.training.loop, "COMPILE_FROM", 1)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def graph(norm: str, act: str, optim: str, hidden: list[int], steps: int, compiled: bool = True) -> RunConfig:
    return RunConfig(
        dataset=DatasetConfig("digits", validation=300),
        arch=ArchConfig(hidden=hidden),
        norm=NormConfig(norm),
        act=ActConfig(act),
        optim=OptimConfig(optim),
        eval=EvalConfig(first_every=50, first_until=200, every=100),
        steps=steps,
        batch_size=32,
        device="cpu",
        compile=compiled,
    )


def draw(config: RunConfig, dice: random.Random, diverges: bool = False) -> RunConfig:
    """Other numbers, the same graph."""
    lr = DIVERGES if diverges else 10 ** dice.uniform(-3, -0.5)
    return replace(
        config,
        seed=dice.randrange(10**6),
        init=InitConfig(std=dice.choice([0.05, 0.3])),
        norm=replace(config.norm, eps=10 ** dice.uniform(-6, -2), momentum=dice.uniform(0.01, 0.3)),
        optim=replace(
            config.optim,
            lr=lr,
            weight_decay=dice.choice([0.0, 1e-3]),
            momentum=dice.uniform(0, 0.95),
            schedule=dice.choice(["constant", "cosine"]),
        ),
    )


def train(configs: list[RunConfig], folder: Path) -> list[tuple[bytes, bytes]]:
    """metrics.csv and the checkpoint of each, trained together."""
    members = [
        create_or_reopen_run(config, Launch(folder / str(number), [], number, decide_compilation(config)), len(configs))
        for number, config in enumerate(configs)
    ]
    train_together(members)
    assert all(isinstance(member.outcome, dict) for member in members), [m.outcome for m in members]
    return [tuple((folder / str(i) / name).read_bytes() for name in (METRICS, CHECKPOINT)) for i in range(len(configs))]  # type: ignore[misc]


def check_draw(config: RunConfig, dice: random.Random, sizes: list[int], folder: Path) -> None:
    """One member alone, then in stacks of these sizes, anywhere in them, some of its stack_size diverging."""
    member = draw(config, dice)
    [alone] = train([member], folder / "alone")
    for number, size in enumerate(sizes):
        diverging = dice.choice([0, size // 2, size - 1])
        stack_size = [draw(config, dice, diverges=i < diverging) for i in range(size - 1)]
        dice.shuffle(stack_size)
        place = dice.randrange(size)
        together = train([*stack_size[:place], member, *stack_size[place:]], folder / str(number))
        where = f"in place {place} of a stack of {size}, {diverging} diverging ({BUILD})"
        assert together[place][0] == alone[0], f"another metrics.csv {where}"
        assert together[place][1] == alone[1], f"other parameters {where}"


@needs_compiler
@pytest.mark.parametrize("names", [("none", "relu", "adam"), ("batch", "sigmoid", "sgd")])
def test_same_bytes_alone_and_in_company(names: tuple[str, str, str], tmp_path: Path) -> None:
    """Few graphs, since each takes two compilations; test-slow has them all."""
    dice = random.Random(" ".join(names))
    config = graph(*names, hidden=[24], steps=250)
    for number in range(5):
        check_draw(config, dice, [3], tmp_path / str(number))
    check_warm_up_moves_nothing(config, load_data(config.dataset))
    if "sgd" in names:  # Adam divides what is almost 0 by what is almost 0
        check_compiled_agrees_with_uncompiled(config)


def check_compiled_agrees_with_uncompiled(config: RunConfig) -> None:
    data = load_data(config.dataset)
    compiled, plain = (trained([replace(config, compile=on)], data, 10).members[0].flat() for on in (True, False))
    losses = [state.pop("record.losses").mean() for state in (compiled, plain)]  # of examples; of whole batches
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    for name, tensor in compiled.items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_same_bytes_uncompiled(norm: str, tmp_path: Path) -> None:
    dice = random.Random(norm)
    check_draw(graph(norm, "sigmoid", "adam", hidden=[24, 20], steps=120, compiled=False), dice, [2, 5], tmp_path)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("number", range(DRAWS))
def test_same_bytes_of_every_graph(number: int, tmp_path: Path) -> None:
    dice = random.Random(number)
    names = GRAPHS[number] if number < len(GRAPHS) else dice.choice(GRAPHS)
    widths = dice.choice([[100, 100, 100], [64], [300, 52]])
    check_draw(graph(*names, hidden=widths, steps=500), dice, [dice.randint(2, 16)], tmp_path)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_same_bytes_in_bf16(norm: str, tmp_path: Path) -> None:
    config = replace(graph(norm, "relu", "sgd", hidden=[100, 100], steps=300), precision="bf16")
    check_draw(config, random.Random(norm), [2, 5, 16], tmp_path)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("norm", ["none", "batch", "instance"])
def test_same_bytes_of_a_compiled_network_for_images(norm: str, precision: str, tmp_path: Path) -> None:
    config = graph(norm, "relu", "momentum", hidden=[8], steps=120)
    config = replace(config, arch=ArchConfig("resnet", depth=8, channels=[8, 8, 16]), precision=precision)
    members = [
        replace(config, seed=seed, optim=replace(config.optim, lr=lr)) for seed, lr in ((1, 0.1), (2, 0.01), (3, 1e-3))
    ]
    together = train(members, tmp_path / "together")
    for number, member in enumerate(members):
        assert train([member], tmp_path / str(number)) == [together[number]]


@needs_compiler
def test_diverged_companions_leave(tmp_path: Path) -> None:
    """A diverged member keeps the parameters of the evaluation that found out, alone and in company."""
    config = graph("batch", "sigmoid", "sgd", hidden=[24], steps=150)
    dice = random.Random(1)
    lost = draw(config, dice, diverges=True)
    [alone] = train([lost], tmp_path / "alone")
    together = train([draw(config, dice), lost, draw(config, dice)], tmp_path / "together")
    assert together[1] == alone
    assert b"\n100," not in alone[0]
    assert b"\n150,test" in together[0][0]
