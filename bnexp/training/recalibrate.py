"""`eval.recalibrate`: population statistics, computed anew over one epoch, replace the running averages."""

from dataclasses import replace

import torch
from torch import nn

from bnexp.data.batches import Order
from bnexp.models.norms import BatchNorm
from bnexp.training.engine import Stack, make_network
from bnexp.training.evaluation import ShouldStop, Stopped, Tensors, make_answer, never_stop


@torch.no_grad()
def recalibrated(stack: Stack, row: int, should_stop: ShouldStop = never_stop) -> Tensors | None:
    """Return a member's buffers, with each running mean and variance replaced by that over its training set.

    Statistics are taken over the full batches of one epoch, with the present parameters: the mean of the batches'
    means, and the mean of their biased variances plus the variance of their means ("precise BN", Wu & Johnson 2021,
    §3). Returns None if no norm updates running averages. `should_stop` is called before each batch. Raises Stopped
    if it returns True.
    """
    config, train, member = stack.configs[row], stack.data.train, stack.members[row]
    norms = [name.removesuffix(".momentum") for name in member.buffers if name.endswith(".momentum")]
    if not norms:
        return None
    # What `keep_last_batch` does for torch's kernels: the formula reads its momentum from a buffer.
    fixed = {f"{norm}.momentum": torch.ones_like(member.buffers[f"{norm}.momentum"]) for norm in norms}
    for name, noise in stack.noises.items():
        places = {f"{name}.{buffer}": value for buffer, value in noise.SILENT.items()}
        fixed |= {place: torch.full_like(member.buffers[place], value) for place, value in places.items()}
    order = Order(config.seed, len(train), config.batch_size)
    answer = make_answer(keep_last_batch(make_network(config, stack.data, kernels=True)))
    averages = [f"{norm}.{average}" for norm in norms for average in ("running_mean", "running_var")]
    statistics: list[Tensors] = []
    for number in range(len(train) // config.batch_size):
        if should_stop():
            raise Stopped
        batch = train[order.batch(number).to(train.labels.device)]
        buffers = {name: tensor.clone() for name, tensor in (member.buffers | fixed).items()}
        answer(member.parameters, buffers, stack.data.scaled(batch.pixels), batch.condition)
        statistics.append({name: buffers[name] for name in averages})
    return member.buffers | {key: tensor for norm in norms for key, tensor in over_batches(norm, statistics).items()}


def over_batches(norm: str, statistics: list[Tensors]) -> Tensors:
    """Return the population mean and variance for a norm, (C,), by buffer name, from its statistics in every batch."""
    mean, variance = f"{norm}.running_mean", f"{norm}.running_var"
    means, variances = (torch.stack([buffers[name] for buffers in statistics]) for name in (mean, variance))
    return {mean: means.mean(0), variance: variances.mean(0) + means.var(0, correction=0)}


def keep_last_batch(model: nn.Module) -> nn.Module:
    """Make torch's kernels replace the running averages of a network by the mean and biased variance of each batch, and
    return the network.

    Only biased variances add up over batches.
    """
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.config = replace(module.config, momentum=1.0, unbiased=False)
    return model
