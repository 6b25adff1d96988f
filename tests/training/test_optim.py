"""Every optimizer against torch.optim's, in float64, alone and under vmap."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from bnexp.runs.config import ConfigError, OptimConfig
from bnexp.training.optim import NUMBERS, OPTIMIZERS, Numbers, Slots, find_optimizer, schedule_factor

STEPS = 20
DEFAULTS = {"lr": 0.05, "weight_decay": 0.0, "momentum": 0.9, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}
TORCH: dict[str, Callable[[Iterable[Tensor], dict[str, float]], torch.optim.Optimizer]] = {
    "sgd": lambda p, n: torch.optim.SGD(p, n["lr"], weight_decay=n["weight_decay"]),
    "momentum": lambda p, n: torch.optim.SGD(p, n["lr"], n["momentum"], weight_decay=n["weight_decay"]),
    "adam": lambda p, n: torch.optim.Adam(p, n["lr"], (n["beta1"], n["beta2"]), n["eps"], n["weight_decay"]),
    "adamw": lambda p, n: torch.optim.AdamW(p, n["lr"], (n["beta1"], n["beta2"]), n["eps"], n["weight_decay"]),
}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


INPUTS, TARGETS = draw(16, 5, seed=1), draw(16, 3, seed=2)


def loss(weight: Tensor) -> Tensor:
    return ((INPUTS @ weight).tanh() - TARGETS).square().mean()


def gradient(weight: Tensor) -> Tensor:
    leaf = weight.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


def empty_slots(name: str, weight: Tensor) -> Slots:
    return {slot: torch.zeros_like(weight) for slot in OPTIMIZERS[name].slots}


def tensors(numbers: dict[str, float], step: int) -> Numbers:
    return {key: torch.tensor(value, dtype=torch.float64) for key, value in {**numbers, "t": float(step)}.items()}


def ours(name: str, weight: Tensor, numbers: dict[str, float]) -> list[Tensor]:
    """The weights after every step."""
    weight, slots, path = weight.clone(), empty_slots(name, weight), []
    for step in range(1, STEPS + 1):
        OPTIMIZERS[name].update(weight, gradient(weight), slots, tensors(numbers, step))
        path.append(weight.clone())
    return path


def theirs(name: str, weight: Tensor, numbers: dict[str, float]) -> list[Tensor]:
    parameter, path = torch.nn.Parameter(weight.clone()), []
    optimizer = TORCH[name]([parameter], numbers)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(parameter).backward()
        optimizer.step()
        path.append(parameter.detach().clone())
    return path


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_torch(name: str, weight_decay: float) -> None:
    start, numbers = draw(5, 3, seed=3), {**DEFAULTS, "weight_decay": weight_decay}
    for mine, other in zip(ours(name, start, numbers), theirs(name, start, numbers), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_matters(name: str) -> None:
    start = draw(5, 3, seed=3)
    without, with_decay = (ours(name, start, {**DEFAULTS, "weight_decay": decay})[-1] for decay in (0.0, 0.1))
    assert not torch.allclose(without, with_decay)


def test_adam_and_adamw_differ_in_weight_decay_alone() -> None:
    start = draw(5, 3, seed=3)
    for decay, equal in ((0.0, True), (0.1, False)):
        numbers = {**DEFAULTS, "weight_decay": decay}
        assert torch.allclose(ours("adam", start, numbers)[-1], ours("adamw", start, numbers)[-1]) is equal


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_members_with_their_own_numbers_equal_themselves_alone(name: str) -> None:
    members = [
        DEFAULTS,
        {**DEFAULTS, "lr": 0.3, "momentum": 0.5, "beta1": 0.8, "eps": 1e-3},
        {**DEFAULTS, "lr": 0.01, "weight_decay": 0.2, "beta2": 0.9},
    ]
    starts = torch.stack([draw(5, 3, seed=10 + row) for row in range(len(members))])
    weights, slots = starts.clone(), empty_slots(name, starts)

    def update(weight: Tensor, grad: Tensor, slots: Slots, numbers: Numbers) -> Tensor:
        OPTIMIZERS[name].update(weight, grad, slots, numbers)
        return weight

    for step in range(1, STEPS + 1):
        gradients = torch.stack([gradient(weight) for weight in weights])
        rows = [tensors(numbers, step) for numbers in members]
        vmap(update)(weights, gradients, slots, {key: torch.stack([row[key] for row in rows]) for key in rows[0]})
    for row, numbers in enumerate(members):
        assert torch.equal(weights[row], ours(name, starts[row], numbers)[-1])


def test_every_number_is_a_key_of_the_configuration() -> None:
    assert set(NUMBERS) == set(DEFAULTS)
    assert all(isinstance(getattr(OptimConfig(), name), float) for name in NUMBERS)


def test_unknown_optimizer_names_the_choices() -> None:
    with pytest.raises(ConfigError, match="optim=sdg") as error:
        find_optimizer(OptimConfig("sdg"))
    assert all(name in str(error.value) for name in OPTIMIZERS)


@pytest.mark.parametrize(
    ("schedule", "step", "factor"),
    [
        ("constant", 0, 1.0),
        ("constant", 99, 1.0),
        ("cosine", 0, 1.0),
        ("cosine", 25, (1 + 0.5**0.5) / 2),
        ("cosine", 50, 0.5),
        ("cosine", 75, (1 - 0.5**0.5) / 2),
        ("cosine", 100, 0.0),
        ("step", 0, 1.0),
        ("step", 49, 1.0),
        ("step", 50, 0.1),
        ("step", 74, 0.1),
        ("step", 75, 0.01),
        ("step", 99, 0.01),
    ],
)
def test_schedule_by_hand(schedule: str, step: int, factor: float) -> None:
    assert schedule_factor(schedule, step, 100) == pytest.approx(factor, abs=1e-12)
