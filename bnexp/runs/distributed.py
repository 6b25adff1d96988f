"""Data-parallel training of one run: `torchrun --nproc-per-node 2 -m bnexp train norm=sync_batch`.

Each process trains on its shard of every batch, gradients are averaged, and rank 0 writes the run's directory. Without
torchrun there is one process: `mean`, `average`, `all_gather` and `shard` return their arguments unchanged.
"""

import atexit
import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Return the rank of this process, 0 without torchrun."""
    return int(os.environ["RANK"]) if processes() > 1 else 0


def processes() -> int:
    """Return the number of processes that torchrun started, or 1; a WORLD_SIZE that a cluster sets does not count."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def processes_here() -> int:
    """Return the number of the run's processes on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if processes() > 1 else 1


def init_process_group() -> None:
    """Connect with the other processes, unless they are already connected.

    If there is a GPU for each process on this machine, this process selects its own, and CUDA tensors are sent by NCCL.
    All other tensors are sent by Gloo.
    """
    if dist.is_initialized():
        return
    cuda = torch.cuda.device_count() >= processes_here()  # one for each process
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    atexit.register(dist.destroy_process_group)


def barrier() -> None:
    """Wait until every process has called this.

    Files that rank 0 writes afterwards therefore can't disturb the checks of the other ranks.
    """
    dist.barrier()


def all_reduce(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; the argument is not changed."""
    total = tensor.contiguous().clone()
    dist.all_reduce(total)
    return total


class Sum(torch.autograd.Function):
    """The differentiable sum of a tensor over all processes.

    Every process computes with the total, so the gradients are summed over processes as well.
    """

    @staticmethod
    def forward(context: Any, tensor: Tensor) -> Tensor:
        """Return the sum of the tensor over all processes."""
        return all_reduce(tensor)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        """Return the sum, over all processes, of the gradient with respect to the total."""
        return all_reduce(gradients[0])


def mean(tensor: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, differentiable."""
    if processes() == 1:
        return tensor
    total: Tensor = Sum.apply(tensor)
    return total / processes()


def average(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return each parameter's gradient averaged over all processes. They are sent in one message."""
    if processes() == 1:
        return gradients
    flat = all_reduce(torch.cat([gradient.flatten() for gradient in gradients.values()]))
    parts = torch.split(flat / processes(), [gradient.numel() for gradient in gradients.values()])
    return {name: part.view_as(gradients[name]) for name, part in zip(gradients, parts, strict=True)}


def all_gather(shard: Tensor) -> Tensor:
    """Return the concatenated shards of all processes, (B, …), from this process's shard, (B / processes, …)."""
    if processes() == 1:
        return shard
    batch = shard.new_empty(processes() * len(shard), *shard.shape[1:])
    dist.all_gather_into_tensor(batch, shard.contiguous())
    return batch


def shard(batch: Tensor) -> Tensor:
    """Return this process's part, along B, of a batch of a stack (S, B, …): S members, B images."""
    return batch.chunk(processes(), 1)[rank()]
