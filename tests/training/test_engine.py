"""The step of a stack, compiled and not, and the evaluation of a member."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from math import prod

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from builders import make_stack, toy_data
from torch import Tensor, nn
from torch.func import functional_call

from bnexp.data.batches import Batches
from bnexp.data.load import Data, load_data
from bnexp.models.registry import make_model
from bnexp.runs.config import ActConfig, ArchConfig, ConfigError, DatasetConfig, NormConfig, OptimConfig, RunConfig
from bnexp.runs.directory import Compilation
from bnexp.training.compiler import has_compiler
from bnexp.training.device import decide_compilation, pick_device, thread_count
from bnexp.training.engine import Stack
from bnexp.training.evaluation import Evaluation, activation_columns
from bnexp.training.state import start_member

CPU = torch.device("cpu")
GRAPHS = [("none", "sgd", "relu"), ("batch", "sgd", "sigmoid"), ("layer", "adam", "tanh"), ("group", "adam", "sigmoid")]
needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler (g++ or clang++)")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)
    torch.set_num_threads(before)


def mlp(norm: str = "batch", optim: str = "sgd", act: str = "relu", compiled: bool = False, seed: int = 0) -> RunConfig:
    return RunConfig(
        arch=ArchConfig(hidden=[24, 20]),
        act=ActConfig(act),
        norm=NormConfig(norm),
        optim=OptimConfig(optim, lr=0.1 if optim == "sgd" else 0.01),
        seed=seed,
        steps=100,
        batch_size=30,
        device="cpu",
        threads=1,
        compile=compiled,
    )


def convnet(**changes: object) -> RunConfig:
    return replace(mlp(), arch=ArchConfig("convnet", channels=[4, 8], dense=16), **changes)


def with_lr(config: RunConfig, lr: float) -> RunConfig:
    return replace(config, optim=replace(config.optim, lr=lr))


def make_batches(configs: list[RunConfig], data: Data) -> Batches:
    augment = configs[0].dataset.augment != "none"
    return Batches([config.seed for config in configs], len(data.train), configs[0].batch_size, augment, CPU)


def trained(configs: list[RunConfig], data: Data, steps: int = 30) -> Stack:
    stack, batches = make_stack(configs, data, CPU), make_batches(configs, data)
    for step in range(steps):
        stack.prepare(step)
        stack.step(batches.batch(step))
    return stack


def snapshot(stack: Stack, row: int) -> tuple[dict[str, Tensor], Evaluation]:
    state = {name: tensor.clone() for name, tensor in stack.members[row].flat().items()}
    return state, stack.evaluate(row, stack.data.validation)


def assert_same_bytes(one: tuple[dict[str, Tensor], Evaluation], two: tuple[dict[str, Tensor], Evaluation]) -> None:
    assert one[0].keys() == two[0].keys()
    assert [name for name in one[0] if not torch.equal(one[0][name], two[0][name])] == []
    assert one[1] == two[1]


def moved(stack: Stack, row: int, data: Data) -> float:
    start = start_member(stack.configs[row], data).parameters
    return max(float((stack.members[row].parameters[name] - start[name]).abs().max()) for name in start)


# --- a member is the same alone and beside others


def check_companions_are_invisible(config: RunConfig, data: Data) -> None:
    """Seeds 0, 1, 2 and other learning rates: member 1 alone, in the middle, and last beside others."""
    member = replace(config, seed=1)
    others = [with_lr(replace(config, seed=seed), lr) for seed, lr in ((0, 0.02), (2, 0.3), (5, 0.001))]
    stacks = [(1, [others[0], member, others[1]]), (2, [others[1], others[2], member])]
    for steps in (1, 2, 30):  # a difference in the last bit can vanish again
        alone = trained([member], data, steps)
        assert moved(alone, 0, data) > 1e-4
        for row, configs in stacks:
            stack = trained(configs, data, steps)
            assert_same_bytes(snapshot(alone, 0), snapshot(stack, row))
            parameters = [stack.members[number].parameters["classifier.weight"] for number in range(3)]
            assert not any(torch.equal(a, b) for a, b in itertools.combinations(parameters, 2))


@pytest.mark.parametrize(("norm", "optim", "act"), GRAPHS)
def test_uncompiled_stack(norm: str, optim: str, act: str) -> None:
    """test_stacking.py has compiled ones."""
    data, config = toy_data(), mlp(norm, optim, act)
    check_companions_are_invisible(config, data)
    check_warm_up_moves_nothing(config, data)
    check_divergence_stays_with_its_member(config, data)


def check_warm_up_moves_nothing(config: RunConfig, data: Data) -> None:
    configs = [config, replace(config, seed=1), replace(config, seed=2)]
    stack, batches = make_stack(configs, data, CPU), make_batches(configs, data)
    before = [snapshot(stack, row) for row in range(3)]
    stack.warm_up(batches.batch(0))
    for row in range(3):
        assert_same_bytes(snapshot(stack, row), before[row])


def check_divergence_stays_with_its_member(config: RunConfig, data: Data) -> None:
    configs = [replace(config, seed=seed) for seed in range(3)]
    healthy = trained(configs, data, 12)
    stack = trained([configs[0], with_lr(configs[1], 1e30), configs[2]], data, 12)
    for row in (0, 2):
        assert_same_bytes(snapshot(stack, row), snapshot(healthy, row))
        assert stack.diverged_at(row) is None


@pytest.mark.parametrize("augment", ["none", "flip_crop"])
def test_convnets_beside_others(augment: str) -> None:
    data = toy_data((3, 8, 8))
    config = convnet(dataset=DatasetConfig(augment=augment))
    alone = trained([replace(config, seed=1)], data, 5)
    stack = trained([config, replace(config, seed=1)], data, 5)
    assert_same_bytes(snapshot(alone, 0), snapshot(stack, 1))


# --- against a plain training loop


def plain_network(config: RunConfig, data: Data) -> nn.Sequential:
    """Layer, norm, activation twice and the classifier, with bnexp's starting weights."""
    start = start_member(config, data).parameters
    widths = [64, *config.arch.hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for number, (n, m) in enumerate(itertools.pairwise(widths)):
        linear = nn.Linear(n, m, bias=config.norm.name == "none")
        linear.load_state_dict({k: start[f"hidden.{number}.layer.{k}"] for k in linear.state_dict()})
        layers += [linear, nn.BatchNorm1d(m) if config.norm.name == "batch" else nn.Identity(), nn.ReLU()]
    classifier = nn.Linear(widths[-1], 10)
    classifier.load_state_dict({k: start[f"classifier.{k}"] for k in classifier.state_dict()})
    return nn.Sequential(*layers, classifier)


def plain_loop(config: RunConfig, data: Data, steps: int) -> tuple[nn.Sequential, list[float]]:
    model, batches, losses = plain_network(config, data), make_batches([config], data), []
    optimizer = torch.optim.SGD(model.parameters(), lr=config.optim.lr)
    for step in range(steps):
        index = batches.batch(step).index[0]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(data.train.pixels[index].float() / 255), data.train.labels[index])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return model, losses


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_step_agrees_with_a_plain_loop(norm: str) -> None:
    data, config = toy_data(), mlp(norm)
    model, losses = plain_loop(config, data, 25)
    stack = trained([config], data, 25)
    mine = stack.members[0]
    for ours, theirs in zip(mine.parameters.values(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-5)
    averages = [buffer for name, buffer in model.named_buffers() if "num_batches" not in name]
    running = [buffer for name, buffer in mine.buffers.items() if "running" in name]
    assert len(averages) == (4 if norm == "batch" else 0)
    for ours, theirs in zip(running, averages, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert int(mine.record["step"]) == 25
    assert stack.take_loss(0, 25) == pytest.approx(np.mean(losses), abs=1e-5)


def test_taking_the_loss_starts_the_next_mean() -> None:
    data, config = toy_data(), mlp()
    _, losses = plain_loop(config, data, 9)
    stack, batches, means = make_stack([config], data, CPU), make_batches([config], data), []
    for step in range(9):
        stack.step(batches.batch(step))
        if step in (3, 8):
            means.append(stack.take_loss(0, 4 if step == 3 else 5))
    assert means == pytest.approx([np.mean(losses[:4]), np.mean(losses[4:])], abs=1e-5)


# --- divergence, schedules


def test_divergence_names_its_step() -> None:
    """The first loss is that of the starting weights; the second is no number after an update of 1e30."""
    data = toy_data()
    stack = trained([with_lr(mlp("none"), 1e30), mlp("none", seed=1)], data, 6)
    assert stack.diverged_at(0) == 2
    assert stack.diverged_at(1) is None
    assert not np.isfinite(stack.take_loss(0, 6))
    assert np.isfinite(stack.take_loss(1, 6))


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.4, 0.4, 0.4, 0.4]),
        ("cosine", [0.4, 0.2 + 0.2 * 0.5**0.5, 0.2, 0.2 - 0.2 * 0.5**0.5]),
        ("step", [0.4, 0.4, 0.04, 0.004]),
    ],
)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_schedules_change_the_rate(schedule: str, rates: list[float], compiled: bool) -> None:
    data = toy_data()
    config = replace(mlp(compiled=compiled), optim=OptimConfig(lr=0.4, schedule=schedule), steps=4)
    stack, found = make_stack([config, with_lr(config, 0.8)], data, CPU), []
    for step in range(4):
        stack.prepare(step)
        found.append([float(member.numbers["lr"]) for member in stack.members])
        if compiled:
            assert stack.state.numbers["lr"].tolist() == found[-1]  # what the step reads
    assert found == [pytest.approx([rate, 2 * rate]) for rate in rates]


def test_the_rate_is_what_an_update_is_multiplied_with() -> None:
    data = toy_data()
    config = replace(mlp("none"), optim=OptimConfig(lr=0.4, schedule="step"), steps=4)
    stack, batch = make_stack([config], data, CPU), make_batches([config], data).batch(0)
    stack.prepare(3)
    stack.step(batch)
    constant = trained([with_lr(mlp("none"), 0.004)], data, 1)
    torch.testing.assert_close(stack.members[0].parameters, constant.members[0].parameters)


# --- evaluation


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_evaluation_equals_a_direct_computation(norm: str) -> None:
    """More images than an evaluation takes at a time; nothing moves."""
    data, config = toy_data(validation=730), mlp(norm)
    stack = trained([config], data, 15)
    before = {name: tensor.clone() for name, tensor in stack.members[0].flat().items()}
    result = stack.evaluate(0, data.validation)
    model = make_model(config, data.shape, 10, device="cpu").eval()
    model.load_state_dict(stack.members[0].parameters | stack.members[0].buffers)
    with torch.no_grad():
        logits = model(data.validation.pixels.float() / 255)
    assert result.loss == pytest.approx(float(F.cross_entropy(logits, data.validation.labels)), abs=1e-6)
    assert result.accuracy == float((logits.argmax(1) == data.validation.labels).sum()) / 730
    assert all(torch.equal(tensor, before[name]) for name, tensor in stack.members[0].flat().items())


@pytest.mark.parametrize("validation", [1, 130, 601])
def test_percentiles_equal_numpy(validation: int) -> None:
    """Of the inputs to the first unit's activation, over the first 500 images; the nearest one that was seen."""
    data, config = toy_data(validation=validation), mlp("none", act="identity")
    stack = trained([config], data, 3)
    found = stack.evaluate(0, data.validation).activations
    x = (data.validation.pixels[:500].float() / 255).flatten(1)
    expected = {}
    for layer in range(2):
        parameters = (stack.members[0].parameters[f"hidden.{layer}.layer.{name}"] for name in ("weight", "bias"))
        x = F.linear(x, *parameters)
        for p in (15, 50, 85):
            expected[f"hidden.{layer}/p{p}"] = np.percentile(x[:, 0].numpy(), p, method="nearest")
    assert found == pytest.approx(expected, abs=1e-5)
    assert list(found) == activation_columns(stack.model)


def test_percentiles_are_taken_where_the_activation_reads() -> None:
    """After the norm where it stands before the activation."""
    data, config = toy_data(), mlp("batch")
    stack = trained([config], data, 15)
    model = make_model(config, data.shape, 10, device="cpu").eval()
    model.load_state_dict(stack.members[0].parameters | stack.members[0].buffers)
    with torch.no_grad():
        block = model.hidden[0]
        values = block.norm(block.layer((data.validation.pixels.float() / 255).flatten(1)))[:, 0]
    median = stack.evaluate(0, data.validation).activations["hidden.0/p50"]
    assert median == pytest.approx(np.percentile(values.numpy(), 50, method="nearest"), abs=1e-5)


def test_an_evaluation_keeps_one_channel_alone() -> None:
    """Not what it is a view of: of DenseNet-40 that would be gigabytes."""
    data, config = toy_data(), mlp("none")
    stack = trained([config], data, 1)
    stack.evaluate(0, data.validation)
    kept = [part for parts in stack.evaluators[0].inputs.values() for part in parts]
    assert len(kept) == len(config.arch.hidden)
    assert all(part.untyped_storage().nbytes() == part.nbytes for part in kept)


def test_batches_of_an_evaluation_follow_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither sums nor percentiles depend on them: compared are batches of all images and of 7."""
    data, config = toy_data(), mlp("batch")
    stack = trained([config], data, 15)
    whole = stack.evaluate(0, data.validation)
    largest = 4 * max(prod(data.shape), *config.arch.hidden)  # bytes of the input or of a layer's output, of an image
    monkeypatch.setattr("bnexp.training.evaluation.CACHES", 7 * largest)
    stack = trained([config], data, 15)
    parts = stack.evaluate(0, data.validation)
    assert stack.evaluators[0].batch == 7
    assert parts.accuracy == whole.accuracy
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.activations == pytest.approx(whole.activations, abs=1e-5)


# --- convolutions, bf16, learning


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("augment", ["none", "flip_crop"])
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "instance", "group"])
def test_convnet_step_lowers_the_loss(norm: str, augment: str, precision: str) -> None:
    data = toy_data((3, 8, 8))
    dataset = DatasetConfig(augment=augment)
    config = with_lr(convnet(dataset=dataset, precision=precision, norm=NormConfig(norm)), 0.05)
    stack, batches = make_stack([config], data, CPU), make_batches([config], data)
    batch = batches.batch(0)
    losses = []
    for _ in range(8):
        stack.step(batch)
        losses.append(stack.take_loss(0, 1))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in stack.members[0].parameters.values())
    assert 0 <= stack.evaluate(0, data.validation).accuracy <= 1


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_bf16_stays_near_fp32(norm: str) -> None:
    data = toy_data()
    full, half = (trained([replace(mlp(norm), precision=precision)], data, 5) for precision in ("fp32", "bf16"))
    one, two = (stack.members[0].parameters["classifier.weight"] for stack in (full, half))
    assert not torch.equal(one, two)
    torch.testing.assert_close(one, two, rtol=0, atol=0.01)


def test_augmented_batches_differ_from_plain_ones() -> None:
    data = toy_data((3, 8, 8))
    plain, augmented = (trained([convnet(dataset=DatasetConfig(augment=a))], data, 1) for a in ("none", "flip_crop"))
    name = "convolutions.0.layer.weight"
    assert not torch.equal(plain.members[0].parameters[name], augmented.members[0].parameters[name])


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_small_network_learns_32_digits_by_heart(norm: str) -> None:
    data = load_data(DatasetConfig("digits", validation=200, limit=32))
    config = replace(mlp(norm), batch_size=32)
    stack = trained([config], data, 400)
    model = make_model(config, data.shape, 10, device="cpu").train()  # a batch of all images, as in training
    logits = functional_call(
        model, (stack.members[0].parameters, stack.members[0].buffers), (data.train.pixels.float() / 16,)
    )
    assert bool((logits.argmax(1) == data.train.labels).all())
    assert stack.evaluate(0, data.train).accuracy == 1.0


# --- what decides how a run computes


@pytest.mark.parametrize(
    ("compiled", "steps", "arch", "norm", "expected"),
    [
        ("auto", 4999, "mlp", "none", False),
        ("auto", 5000, "mlp", "none", True),
        ("auto", 5000, "mlp", "group", True),
        ("auto", 4999, "resnet", "batch", False),
        ("auto", 5000, "resnet", "batch", True),
        ("auto", 5000, "lenet", "none", True),
        ("auto", 5000, "resnet", "group", True),
        ("auto", 50_000, "convnet", "none", False),
        (True, 10, "mlp", "none", True),
        (True, 10, "convnet", "layer", True),
        (False, 50_000, "mlp", "none", False),
    ],
)
def test_what_is_compiled(
    compiled: bool | str, steps: int, arch: str, norm: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig(arch=ArchConfig(arch), norm=NormConfig(norm), steps=steps, compile=compiled, device="cpu")
    monkeypatch.setattr("bnexp.training.device.compiler_problem", lambda *_: None)
    assert decide_compilation(config) == Compilation(expected)
    monkeypatch.setattr("bnexp.training.device.compiler_problem", lambda *_: "none is there")
    if compiled is True:
        with pytest.raises(ConfigError, match="compile=true is not allowed: none is there"):
            decide_compilation(config)
    else:
        assert decide_compilation(config) == Compilation(False, "none is there" if expected else None)


def test_threads() -> None:
    assert thread_count(RunConfig(), CPU) == 1
    assert thread_count(RunConfig(threads=3), CPU) == 3
    assert thread_count(RunConfig(arch=ArchConfig("convnet")), CPU) >= 1


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    with pytest.raises(ConfigError, match="device=cuda is not available: choose from cpu"):
        pick_device("cuda")
