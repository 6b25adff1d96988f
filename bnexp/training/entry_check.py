"""`bnexp check GROUP/NAME`: does a norm, an activation, … of a plugin do what bnexp relies on?

Each check trains a small network for a few steps, or applies it once. It returns None, or in words what is wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import functional_call

from bnexp.data.batches import batches_of
from bnexp.data.load import load_data
from bnexp.models.init import initialize
from bnexp.models.norm_registry import find_norm, make_norm
from bnexp.models.registry import make_model, stacks
from bnexp.runs.config import RunConfig
from bnexp.runs.seeds import generator
from bnexp.training.compiler import compiler_problem
from bnexp.training.engine import Stack
from bnexp.training.evaluation import Tensors

STEPS = 6
CPU = torch.device("cpu")


class SkippedError(Exception):
    """The error raised where a check can't be made; its text says why."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check: passed, failed, or skipped, and in the latter two cases the reason in words."""

    check: str
    status: str
    reason: str = ""


def check_entry(config: RunConfig, group: str) -> list[Outcome]:
    """Make all checks of what a configuration chooses in a group, as norm. It should be that of a small network."""
    checks: dict[str, Callable[[RunConfig], str | None]] = {
        "trains": trains,
        **({"shape": keeps_the_shape} if group == "norm" else {}),
        **({"gradient": has_the_right_gradient} if group in ("norm", "act", "arch") else {}),
        "repeatable": is_repeatable,
        "resumable": is_resumable,
        "stackable": is_stackable,
    }
    return [outcome_of(name, check, config) for name, check in checks.items()]


def outcome_of(name: str, check: Callable[[RunConfig], str | None], config: RunConfig) -> Outcome:
    """Make a check. An error of the plugin's code is a failure, too."""
    try:
        reason = check(config)
    except SkippedError as skipped:
        return Outcome(name, "skipped", str(skipped))
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    return Outcome(name, "failed" if reason else "passed", reason or "")


# ---- checks


def trains(config: RunConfig) -> str | None:
    """Check that parameters change and losses are finite."""
    stack, before = stack_of([config]), start_of(config)
    after = advance(stack, 0, STEPS)[0]
    if stack.diverged_at(0) is not None:
        return f"the loss is not finite at update {stack.diverged_at(0)}"
    names = [f"parameters.{name}" for name in stack.members[0].parameters]
    fixed = [name for name in names if torch.equal(before[name], after[name])]
    return f"{STEPS} updates don't change {', '.join(fixed[:3])}" if fixed else None


def keeps_the_shape(config: RunConfig) -> str | None:
    """Check that the norm returns vectors and images in their shape, in training and in evaluation."""
    shapes = [(4, 8, 5, 5), *([] if find_norm(config.norm).images_only else [(4, 8)])]
    for shape in shapes:
        norm = make_norm(config.norm, 8)
        for mode in (True, False):
            y = norm.train(mode)(torch.randn(shape, generator=generator(0, "check")))
            if y.shape != shape:
                return f"{shape} becomes {tuple(y.shape)} in {'training' if mode else 'evaluation'}"
    return None


def has_the_right_gradient(config: RunConfig) -> str | None:
    """Check the gradient of the parameters and the images in training against finite differences, in float64."""
    data = load_data(config.dataset)
    model = make_model(config, data.shape, data.classes, device="cpu")
    initialize(model, config.init, config.seed)
    model = model.double().train()
    images = torch.randn(4, *data.shape, dtype=torch.float64, generator=generator(0, "check")).requires_grad_()
    names = [name for name, _ in model.named_parameters()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def loss(x: Tensor, *parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True)) | {name: buffer.clone() for name, buffer in buffers.items()}
        result: Tensor = functional_call(model, state, (x,)).square().mean()
        return result

    values = [parameter.detach().requires_grad_() for parameter in model.parameters()]
    right = gradcheck(loss, (images, *values), fast_mode=True, raise_exception=False, rtol=1e-3, atol=1e-6)
    return None if right else "it differs from finite differences in double precision"


def is_repeatable(config: RunConfig) -> str | None:
    """Check that a run has the same bytes again, whatever the state of the global random numbers."""
    results = []
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            results.append(advance(stack_of([config]), 0, STEPS)[0])
    return differing(results[0], results[1], "a second run has other bytes, as of global random numbers")


def is_resumable(config: RunConfig) -> str | None:
    """Check that a run that is resumed from its saved state ends in the same bytes."""
    half = advance(stack_of([config]), 0, STEPS // 2)[0]
    resumed = stack_of([config])
    resumed.restore(0, half)
    whole, end = advance(stack_of([config]), 0, STEPS)[0], advance(resumed, STEPS // 2, STEPS)[0]
    return differing(whole, end, "something is neither parameter nor buffer, and is lost")


def is_stackable(config: RunConfig) -> str | None:
    """Check that runs in a compiled stack have the bytes that they have alone, with other values of stackable keys."""
    if not stacks(config):
        raise SkippedError(f"networks of arch={config.arch.name} train one by one")
    if problem := compiler_problem("cpu"):
        raise SkippedError(problem)
    changed = {key: 0.5 * getattr(config.norm, key) for key in find_norm(config.norm).stackable}
    members = [config, replace(config, seed=config.seed + 1, norm=replace(config.norm, **changed))]
    together = advance(stack_of(members, compiled=True), 0, STEPS)
    alone = [advance(stack_of([member], compiled=True), 0, STEPS)[0] for member in members]
    pairs = zip(together, alone, strict=True)
    reasons = [differing(one, other, "a run in a stack has other bytes than alone") for one, other in pairs]
    plain = advance(stack_of(members[1:]), 0, STEPS)[0]  # runs of one graph share its step, and a number in it
    names = [name for name in plain if name.startswith(("parameters.", "buffers."))]
    if not all(torch.allclose(plain[name], together[1][name], 1e-2, 1e-4) for name in names):
        reasons.append("the compiled step isn't the uncompiled one: are the stackable numbers read from buffers?")
    return next(filter(None, reasons), None)


# ---- a few steps of a run


def stack_of(configs: list[RunConfig], compiled: bool = False) -> Stack:
    """Make a stack of runs."""
    return Stack(configs, load_data(configs[0].dataset), CPU, compiled)


def start_of(config: RunConfig) -> Tensors:
    """Return the state of a run before its first update."""
    return flat(stack_of([config]))[0]


def advance(stack: Stack, first: int, last: int) -> list[Tensors]:
    """Update a stack from one step to another, and return the states of its members."""
    batches = batches_of(stack.configs, len(stack.data.train), CPU)
    for step in range(first, last):
        stack.update(step, batches.batch(step))
    return flat(stack)


def flat(stack: Stack) -> list[Tensors]:
    """Return copies of the tensors of each member, by name."""
    return [{name: tensor.clone() for name, tensor in member.flat().items()} for member in stack.members]


def differing(one: Tensors, other: Tensors, what: str) -> str | None:
    """Return `what` with the names of the tensors that differ, None if none does."""
    names = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
    return f"{what}: {', '.join(names[:3])}" if names else None
