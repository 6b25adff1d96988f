"""Training under torchrun in the processes that write nothing: all but rank 0, which runs `loop.py`."""

from bnexp.data.batches import batches_of
from bnexp.data.load import load_data
from bnexp.runs.config import RunConfig
from bnexp.training.device import pick_device, prepare_torch
from bnexp.training.engine import Stack
from bnexp.training.signals import StopRequest


def train_shard(config: RunConfig) -> None:
    """Train this process's shard of each batch under torchrun, in any process but rank 0; stop where rank 0 stops.

    Raises RuntimeError, for example if rank 0 has ended early, unless a signal has asked this process to stop, too.
    """
    device, data = pick_device(config.device), load_data(config.dataset)
    prepare_torch(config, device)
    stack = Stack([config], data, device, compiled=False)
    batches = batches_of([config], len(data.train), device)
    with StopRequest() as stop:
        try:
            stack.warm_up(batches.batch(0))
            for step in range(config.steps):
                if config.eval.due(step, config.steps) and stack.diverged_at(0) is not None:
                    break
                stack.update(step, batches.batch(step))
        except RuntimeError:  # rank 0 has ended
            if not stop.requested():
                raise
