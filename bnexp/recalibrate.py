"""`eval.recalibrate`: population statistics taken anew over the training set, instead of running averages."""

import torch
from torch import Tensor

from bnexp.batches import Order
from bnexp.engine import Stack, Tensors, make_answer


@torch.no_grad()
def recalibrated(stack: Stack, row: int) -> Tensors | None:
    """A member's buffers with each running mean and variance replaced by those over one epoch of its batches, with the
    parameters as they are now: the mean of the batches' means, and the mean of their variances plus the variance of
    their means ("precise BN", Wu & Johnson 2021, §3). None where no norm keeps running averages.
    """
    config, train, member = stack.configs[row], stack.data.train, stack.members[row]
    names = [name.removesuffix(".momentum") for name in member.buffers if name.endswith(".momentum")]
    if not names:
        return None
    quiet = {name: tensor for norm in stack.noisy for name, tensor in without_noise(norm, member.buffers).items()}
    order, answer = Order(config.seed, len(train), config.batch_size), make_answer(stack.model)
    batches = len(train) // config.batch_size
    means, squares = ({name: torch.zeros_like(member.buffers[f"{name}.running_mean"]) for name in names} for _ in "ab")
    for number in range(batches):
        batch = train[order.batch(number).to(train.labels.device)]
        found = {name: tensor.clone() for name, tensor in (member.buffers | quiet).items()}
        for name in names:
            found[f"{name}.momentum"].fill_(1)  # keep the new alone
        answer(member.parameters, found, stack.data.scaled(batch.pixels), batch.condition)
        for name in names:
            mean, variance = found[f"{name}.running_mean"], found[f"{name}.running_var"]
            means[name] += mean / batches
            squares[name] += (variance + mean.square()) / batches
    return member.buffers | averages(means, squares)


def without_noise(norm: str, buffers: Tensors) -> Tensors:
    scale, shift = f"{norm}.scale", f"{norm}.shift"
    return {scale: torch.ones_like(buffers[scale]), shift: torch.zeros_like(buffers[shift])}


def averages(means: Tensors, squares: Tensors) -> Tensors:
    found: dict[str, Tensor] = {}
    for name, mean in means.items():
        found |= {f"{name}.running_mean": mean, f"{name}.running_var": squares[name] - mean.square()}
    return found
