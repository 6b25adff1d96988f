"""Optimizers as functions of one member: a stack maps them over its members, each with numbers of its own.

They compute what torch.optim computes. `numbers` holds a member's scalars: lr, weight_decay, momentum, beta1, beta2,
eps, and t, the count of this update from 1; tensors where the step is compiled, which fuses the arithmetic, and floats
where it isn't, which saves passes over the parameters. Parameters and slots are updated in place.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from bnexp.config import OptimConfig, require_choice

Numbers = Mapping[str, Tensor | float]
Slots = dict[str, Tensor]  # name → what the optimizer remembers of a parameter


def sgd(parameter: Tensor, gradient: Tensor, slots: Slots, numbers: Numbers) -> None:
    """θ ← θ - lr (g + λ θ)"""
    descend(parameter, decayed(gradient, parameter, numbers), numbers["lr"])


def momentum(parameter: Tensor, gradient: Tensor, slots: Slots, numbers: Numbers) -> None:
    """v ← μ v + g + λ θ; θ ← θ - lr v (Polyak 1964, as torch writes it)"""
    velocity = slots["velocity"]
    velocity.mul_(numbers["momentum"]).add_(decayed(gradient, parameter, numbers))
    descend(parameter, velocity, numbers["lr"])


def adam(parameter: Tensor, gradient: Tensor, slots: Slots, numbers: Numbers) -> None:
    """Kingma & Ba 2015, algorithm 1, with λ θ added to the gradient."""
    adam_update(parameter, decayed(gradient, parameter, numbers), slots, numbers)


def adamw(parameter: Tensor, gradient: Tensor, slots: Slots, numbers: Numbers) -> None:
    """Loshchilov & Hutter 2019, algorithm 2: θ shrinks by lr λ, apart from the gradient."""
    parameter.mul_(1 - numbers["lr"] * numbers["weight_decay"])
    adam_update(parameter, gradient, slots, numbers)


def adam_update(parameter: Tensor, gradient: Tensor, slots: Slots, numbers: Numbers) -> None:
    first, second, beta1, beta2, t = (slots["first"], slots["second"], *(numbers[k] for k in ("beta1", "beta2", "t")))
    first.mul_(beta1).add_((1 - beta1) * gradient)
    second.mul_(beta2).add_((1 - beta2) * gradient.square())
    scale = (second / (1 - beta2**t)).sqrt() + numbers["eps"]
    parameter.sub_(numbers["lr"] / (1 - beta1**t) * first / scale)


def decayed(gradient: Tensor, parameter: Tensor, numbers: Numbers) -> Tensor:
    """g + λ θ"""
    decay = numbers["weight_decay"]
    return gradient if isinstance(decay, float) and decay == 0 else gradient + decay * parameter


def descend(parameter: Tensor, direction: Tensor, rate: Tensor | float) -> None:
    """θ ← θ - rate · direction"""
    if isinstance(rate, float):
        parameter.add_(direction, alpha=-rate)
    else:
        parameter.sub_(rate * direction)


@dataclass(frozen=True)
class Optimizer:
    update: Callable[[Tensor, Tensor, Slots, Numbers], None]
    slots: tuple[str, ...] = ()


OPTIMIZERS = {
    "sgd": Optimizer(sgd),
    "momentum": Optimizer(momentum, ("velocity",)),
    "adam": Optimizer(adam, ("first", "second")),
    "adamw": Optimizer(adamw, ("first", "second")),
}
NUMBERS = ("lr", "weight_decay", "momentum", "beta1", "beta2", "eps")
STACKABLE = (*NUMBERS, "schedule")  # keys of OptimConfig in which the members of a stack may differ: see set_rates


def find_optimizer(config: OptimConfig) -> Optimizer:
    require_choice("optim", config.name, OPTIMIZERS)
    return OPTIMIZERS[config.name]


def schedule_factor(schedule: str, step: int, steps: int) -> float:
    """What the learning rate is multiplied with for the update that follows `step` updates out of `steps`."""
    if schedule == "cosine":
        return (1 + math.cos(math.pi * step / steps)) / 2
    if schedule == "step":
        return 0.1 ** ((2 * step >= steps) + (4 * step >= 3 * steps))
    return 1.0
