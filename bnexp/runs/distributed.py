"""Data-parallel training of one run: `torchrun --nproc-per-node 2 -m bnexp train norm=sync_batch`.

Each process trains on its shard of every batch, gradients are averaged, and rank 0 writes the run's directory. Without
torchrun there is one process: `mean`, `average`, `all_gather` and `shard` return their arguments unchanged.
"""

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from bnexp.runs.config import ConfigError
from bnexp.runs.console import print_error

MEETING = timedelta(seconds=45)  # for all processes to connect with each other
UNREACHABLE = (
    "the processes of torchrun can't reach each other: let GLOO_SOCKET_IFNAME name the network interface that connects "
    "their machines"
)
WORKING = timedelta(hours=24)  # for one to wait for the others, which may be compiling or evaluating

_group: Any = None  # of all processes; None: the default group


class PeerLostError(RuntimeError):
    """The error raised where another process of torchrun has ended before its work was done.

    status: the exit status of the command.
    """

    status = 1


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
    All other tensors are sent by Gloo. Raises ConfigError where the processes can't reach each other within MEETING.
    """
    if dist.is_initialized():
        return
    cuda = torch.cuda.device_count() >= processes_here()  # one for each process
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    global _group  # noqa: PLW0603 - a process has one
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    watchdog = threading.Timer(MEETING.total_seconds(), give_up)  # Gloo's own timeout doesn't hold for every process
    watchdog.start()
    try:
        dist.init_process_group(backend, timeout=MEETING, store=open_store(), rank=rank(), world_size=processes())
        _group = dist.new_group(timeout=WORKING)
    except RuntimeError as error:
        raise ConfigError(f"{UNREACHABLE} ({str(error).splitlines()[0][:200]})") from error
    finally:
        watchdog.cancel()
    atexit.register(dist.destroy_process_group)


def give_up() -> None:
    """End this process, which waits for the others in vain."""
    print_error(f"{UNREACHABLE} (nobody answered for {MEETING.total_seconds():.0f} s)")
    os._exit(2)


def open_store() -> Any:
    """Return the store in which the processes leave their addresses, with a part of its own for each restart.

    torchrun keeps the store when it restarts its processes: they would find the addresses of those before.
    """
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_master = rank() == 0 and not hosted
    store = TCPStore(address, port, processes(), is_master, MEETING, multi_tenant=True)
    return PrefixStore(f"bnexp/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


@contextmanager
def noticing_loss() -> Iterator[None]:
    """Raise PeerLostError where a collective operation fails, since another process has ended."""
    try:
        yield
    except RuntimeError as error:
        raise PeerLostError("another process of torchrun has ended") from error


def barrier() -> None:
    """Wait until every process has called this.

    Files that rank 0 writes afterwards therefore can't disturb the checks of the other ranks.
    """
    with noticing_loss():
        dist.barrier(_group)


def broadcast(tensors: dict[str, Tensor], step: int) -> int:
    """Send rank 0's tensors and step to the other processes, whose tensors are overwritten; return rank 0's step."""
    if processes() == 1:
        return step
    number = torch.tensor(step)
    with noticing_loss():
        for tensor in (number, *tensors.values()):
            sent = tensor.contiguous()
            dist.broadcast(sent, 0, _group)
            tensor.copy_(sent)
    return int(number)


def all_reduce(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; the argument is not changed."""
    total = tensor.contiguous().clone()
    with noticing_loss():
        dist.all_reduce(total, group=_group)
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
    with noticing_loss():
        dist.all_gather_into_tensor(batch, shard.contiguous(), _group)
    return batch


def shard(batch: Tensor, axis: int = 1) -> Tensor:
    """Return this process's part of a batch, along an axis of its B examples: by default of a stack's, (S, B, …)."""
    return batch.chunk(processes(), axis)[rank()]
