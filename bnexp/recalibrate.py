"""`eval.recalibrate`: population statistics taken anew over an epoch, instead of running averages."""

from copy import deepcopy

import torch
from torch import Tensor, nn

from bnexp.batches import Order
from bnexp.engine import Asked, Stack, Stopped, Tensors, make_answer, never
from bnexp.norms import BatchNorm

AVERAGES = ("running_mean", "running_var")


@torch.no_grad()
def recalibrated(stack: Stack, row: int, stopping: Asked = never) -> Tensors | None:
    """A member's buffers with each running mean and variance replaced by those over the whole batches of an epoch, with
    the parameters as they are now: the mean of the batches' means, and the mean of their (biased) variances plus the
    variance of their means ("precise BN", Wu & Johnson 2021, §3). None where no norm keeps running averages.
    `stopping` is asked before each batch. Raises Stopped.
    """
    config, train, member = stack.configs[row], stack.data.train, stack.members[row]
    names = [name.removesuffix(".momentum") for name in member.buffers if name.endswith(".momentum")]
    if not names:
        return None
    quiet = {name: tensor for norm in stack.noisy for name, tensor in without_noise(norm, member.buffers).items()}
    order, answer = Order(config.seed, len(train), config.batch_size), make_answer(with_biased_variance(stack.model))
    kept: dict[str, list[Tensor]] = {f"{name}.{average}": [] for name in names for average in AVERAGES}
    for number in range(len(train) // config.batch_size):
        if stopping():
            raise Stopped
        batch = train[order.batch(number).to(train.labels.device)]
        found = {name: tensor.clone() for name, tensor in (member.buffers | quiet).items()}
        for name in names:
            found[f"{name}.momentum"].fill_(1)  # keep the new alone
        answer(member.parameters, found, stack.data.scaled(batch.pixels), batch.condition)
        for name, values in kept.items():
            values.append(found[name])
    every = {name: torch.stack(values) for name, values in kept.items()}
    return member.buffers | {key: value for name in names for key, value in over_batches(name, every).items()}


def over_batches(name: str, every: Tensors) -> Tensors:
    """Of a norm's means and variances (batches, C)."""
    means, variances = (every[f"{name}.{average}"] for average in AVERAGES)
    variance = variances.mean(0) + means.var(0, correction=0)
    return {f"{name}.running_mean": means.mean(0), f"{name}.running_var": variance}


def with_biased_variance(model: nn.Module) -> nn.Module:
    """As the decomposition into variance within and between batches takes it."""
    found = deepcopy(model)
    for module in found.modules():
        if isinstance(module, BatchNorm):
            module.unbiased = False
    return found


def without_noise(norm: str, buffers: Tensors) -> Tensors:
    scale, shift = f"{norm}.scale", f"{norm}.shift"
    return {scale: torch.ones_like(buffers[scale]), shift: torch.zeros_like(buffers[shift])}
