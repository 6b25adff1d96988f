"""Optimizers as functions of one parameter of one member: each member of a stack has its own hyperparameters.

They compute what torch.optim computes, and update parameters and slots in place. `numbers` are a member's scalars: lr,
weight_decay, momentum, beta1, beta2, eps, and t, the number of this update, counted from 1. They are tensors if the
step is compiled, which fuses the arithmetic, and floats if it isn't, which saves passes over the parameters.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from bnexp.runs.config import OptimConfig
from bnexp.runs.plugins import find_entry

Numbers = Mapping[str, Tensor | float]
Slots = dict[str, Tensor]  # name → state tensor of the optimizer for one parameter


def sgd(parameter: Tensor, gradient: Tensor, slots: Slots, numbers: Numbers) -> None:
    """Stochastic gradient descent: θ ← θ - lr (g + λ θ), with λ = weight_decay."""
    descend(parameter, decayed(gradient, parameter, numbers), numbers["lr"])


def momentum(parameter: Tensor, gradient: Tensor, slots: Slots, numbers: Numbers) -> None:
    """Gradient descent with momentum: v ← μ v + g + λ θ; θ ← θ - lr v (Polyak 1964, in torch's form)."""
    velocity = slots["velocity"]
    velocity.mul_(numbers["momentum"]).add_(decayed(gradient, parameter, numbers))
    descend(parameter, velocity, numbers["lr"])


def adam(parameter: Tensor, gradient: Tensor, slots: Slots, numbers: Numbers) -> None:
    """Adam (Kingma & Ba 2015, algorithm 1), with λ θ added to the gradient."""
    adam_update(parameter, decayed(gradient, parameter, numbers), slots, numbers)


def adamw(parameter: Tensor, gradient: Tensor, slots: Slots, numbers: Numbers) -> None:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2): θ ← (1 - lr λ) θ, then Adam's update without λ θ."""
    parameter.mul_(1 - numbers["lr"] * numbers["weight_decay"])
    adam_update(parameter, gradient, slots, numbers)


def adam_update(parameter: Tensor, gradient: Tensor, slots: Slots, numbers: Numbers) -> None:
    """Update Adam's averages m and v and the parameter θ, in place.

    m ← β₁ m + (1 - β₁) g; v ← β₂ v + (1 - β₂) g²; θ ← θ - lr / (1 - β₁ᵗ) m / (√(v / (1 - β₂ᵗ)) + ε).
    """
    first, second, beta1, beta2, t = (slots["first"], slots["second"], *(numbers[k] for k in ("beta1", "beta2", "t")))
    first.mul_(beta1).add_((1 - beta1) * gradient)
    second.mul_(beta2).add_((1 - beta2) * gradient.square())
    scale = (second / (1 - beta2**t)).sqrt() + numbers["eps"]
    parameter.sub_(numbers["lr"] / (1 - beta1**t) * first / scale)


def decayed(gradient: Tensor, parameter: Tensor, numbers: Numbers) -> Tensor:
    """Return the gradient with weight decay, g + λ θ."""
    decay = numbers["weight_decay"]
    return gradient if isinstance(decay, float) and decay == 0 else gradient + decay * parameter


def descend(parameter: Tensor, direction: Tensor, rate: Tensor | float) -> None:
    """Subtract rate · direction from the parameter, in place; if the rate is a float, in one pass."""
    if isinstance(rate, float):
        parameter.add_(direction, alpha=-rate)
    else:
        parameter.sub_(rate * direction)


@dataclass(frozen=True)
class Optimizer:
    """An optimizer. update: a function (parameter, gradient, slots, numbers) that updates a parameter and its slots, in
    place. slots: names of its state tensors, which have the parameter's shape and start at 0.
    """

    update: Callable[[Tensor, Tensor, Slots, Numbers], None]
    slots: tuple[str, ...] = ()


OPTIMIZERS = {
    "sgd": Optimizer(sgd),
    "momentum": Optimizer(momentum, ("velocity",)),
    "adam": Optimizer(adam, ("first", "second")),
    "adamw": Optimizer(adamw, ("first", "second")),
}
NUMBERS = ("lr", "weight_decay", "momentum", "beta1", "beta2", "eps")
STACKABLE = (*NUMBERS, "schedule")  # keys of OptimConfig in which the members of a stack may differ


def find_optimizer(config: OptimConfig) -> Optimizer:
    """Return the optimizer that a configuration names, also a plugin's. Raises ConfigError for an unknown name."""
    optimizer: Optimizer = find_entry("optim", config.name, OPTIMIZERS)
    return optimizer


def schedule_factor(schedule: str, step: int, steps: int) -> float:
    """Return the factor by which the learning rate is multiplied after `step` updates, in a run of `steps` updates.

    cosine: (1 + cos(π step / steps)) / 2. step: 1, 0.1 from half of the updates, 0.01 from three quarters. constant: 1.
    """
    if schedule == "cosine":
        return (1 + math.cos(math.pi * step / steps)) / 2
    if schedule == "step":
        return 0.1 ** ((2 * step >= steps) + (4 * step >= 3 * steps))
    return 1.0
