"""Data-parallel training of one run: `torchrun --nproc-per-node 2 -m bnexp train norm=sync_batch`.

Each process takes its share of every batch, gradients are averaged, rank 0 writes the run's directory. Outside of
torchrun there is one process, and everything here leaves its argument as it is.
"""

import atexit
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return int(os.environ["RANK"]) if processes() > 1 else 0


def processes() -> int:
    """As torchrun says; a cluster's own WORLD_SIZE doesn't count."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def processes_here() -> int:
    """Of them, those on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if processes() > 1 else 1


def join() -> None:
    """Meet the other processes, before anything is computed."""
    if dist.is_initialized():
        return
    cuda = torch.cuda.device_count() >= processes_here()  # one each
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    atexit.register(dist.destroy_process_group)


def meet() -> None:
    """Wait for the others: what one of them writes now, the checks of the rest would find."""
    dist.barrier()


class Sum(torch.autograd.Function):
    """Sum over processes; what comes after it is everybody's, so its gradient is summed as well."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        total = tensor.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def mean(tensor: Tensor) -> Tensor:
    """Over processes, differentiable."""
    if processes() == 1:
        return tensor
    total: Tensor = Sum.apply(tensor)
    return total / processes()


def average(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Over processes, in one message."""
    if processes() == 1:
        return gradients
    flat = torch.cat([gradient.flatten() for gradient in gradients.values()])
    dist.all_reduce(flat)
    parts = torch.split(flat / processes(), [gradient.numel() for gradient in gradients.values()])
    return {name: part.view_as(gradients[name]) for name, part in zip(gradients, parts, strict=True)}


def joined(shares: Tensor) -> Tensor:
    """The processes' shares of a batch, (B / processes, …) each, one after the other."""
    if processes() == 1:
        return shares
    whole = shares.new_empty(processes() * len(shares), *shares.shape[1:])
    dist.all_gather_into_tensor(whole, shares.contiguous())
    return whole


def share(batch: Tensor) -> Tensor:
    """This process's part of (S, B, …), along B."""
    return batch.chunk(processes(), 1)[rank()]
