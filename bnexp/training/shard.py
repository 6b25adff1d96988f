"""Training under torchrun in the processes that write nothing: all but rank 0, which runs `loop.py`."""

from bnexp.data.batches import batches_of
from bnexp.data.load import load_data
from bnexp.runs import distributed
from bnexp.runs.config import RunConfig
from bnexp.training.device import pick_device, prepare_torch
from bnexp.training.engine import Stack
from bnexp.training.signals import Interrupted, StopRequest


def train_shard(config: RunConfig) -> None:
    """Train this process's shard of each batch under torchrun, in any process but rank 0; stop where rank 0 stops.

    The run starts or is resumed from rank 0's state. Raises PeerLostError if rank 0 has ended early, or, where a signal
    has asked this process to stop, too, Interrupted.
    """
    device, data = pick_device(config.device), load_data(config.dataset)
    prepare_torch(config, device)
    stack = Stack([config], data, device, compiled=False)
    batches = batches_of([config], len(data.train), device)
    with StopRequest() as stop:
        try:
            start = distributed.broadcast(stack.members[0].flat(), 0)
            stack.warm_up(batches.batch(start))
            for step in range(start, config.steps):
                if config.eval.due(step, config.steps) and stack.diverged_at(0) is not None:
                    break
                stack.update(step, batches.batch(step))
        except distributed.PeerLostError:
            if stop.signum is not None:
                raise Interrupted(stop.signum) from None
            raise
