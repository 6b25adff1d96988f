"""Data-parallel training of one run: `torchrun --nproc-per-node 2 -m bnexp train norm=sync_batch`.

Each process takes its shard of every batch, gradients are averaged, rank 0 writes the run's directory. Without torchrun
there is one process, and every function here returns its argument as it is.
"""

import atexit
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Number of this process."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def processes() -> int:
    """Number of processes of the run, as torchrun sets it; a cluster's own WORLD_SIZE doesn't count."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def processes_here() -> int:
    """Number of those on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if processes() > 1 else 1


def init_process_group() -> None:
    """Connect with the other processes, before anything is computed."""
    if dist.is_initialized():
        return
    cuda = torch.cuda.device_count() >= processes_here()  # one each
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    atexit.register(dist.destroy_process_group)


def barrier() -> None:
    """Wait until every process is here: what one of them writes from now on, the checks of the others would find."""
    dist.barrier()


def all_reduce(tensor: Tensor) -> Tensor:
    """Sum over processes."""
    total = tensor.contiguous().clone()
    dist.all_reduce(total)
    return total


class Sum(torch.autograd.Function):
    """Differentiable sum over processes. Every process computes with the total, so its gradient is summed as well."""

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        """The total."""
        return all_reduce(tensor)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        """The total of the gradients with respect to it."""
        return all_reduce(gradients[0])


def mean(tensor: Tensor) -> Tensor:
    """Mean over processes, differentiable."""
    if processes() == 1:
        return tensor
    total: Tensor = Sum.apply(tensor)
    return total / processes()


def average(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Average gradients by parameter over processes, in one message."""
    if processes() == 1:
        return gradients
    flat = all_reduce(torch.cat([gradient.flatten() for gradient in gradients.values()]))
    parts = torch.split(flat / processes(), [gradient.numel() for gradient in gradients.values()])
    return {name: part.view_as(gradients[name]) for name, part in zip(gradients, parts, strict=True)}


def all_gather(shard: Tensor) -> Tensor:
    """Join the processes' shards of a batch, (B / processes, …) each, to (B, …)."""
    if processes() == 1:
        return shard
    batch = shard.new_empty(processes() * len(shard), *shard.shape[1:])
    dist.all_gather_into_tensor(batch, shard.contiguous())
    return batch


def shard(batch: Tensor) -> Tensor:
    """This process's part, along B, of a batch of a stack (S, B, …): S members, B images."""
    return batch.chunk(processes(), 1)[rank()]
