"""The loop that most people would write for a run, beside which bnexp's step is measured: torch's own norms and SGD."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from bnexp.data.load import Data
from bnexp.models.norms import BatchNorm
from bnexp.models.registry import make_model
from bnexp.runs.config import RunConfig


def with_torchs_norms(model: nn.Module) -> nn.Module:
    """In place: dense layers have their norm over vectors, which know no positions."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BatchNorm):
                vectors = isinstance(getattr(parent, "layer", None), nn.Linear)
                features = len(child.running_mean)
                setattr(parent, name, nn.BatchNorm1d(features) if vectors else nn.BatchNorm2d(features))
    return model


@dataclass(frozen=True)
class Loop:
    """A plain loop on the run's device, with images and order in its memory. compiled: its network, by torch.compile;
    graph: a whole update as a CUDA graph.
    """

    config: RunConfig
    data: Data
    compiled: bool = False
    graph: bool = False

    def make_step(self) -> Callable[[int], object]:
        """A function of the number of the step."""
        device, size = torch.device(self.config.device), self.config.batch_size
        pixels, labels = self.data.train.pixels.to(device), self.data.train.labels.to(device)
        order, index = torch.randperm(len(labels), device=device), torch.zeros(size, dtype=torch.int64, device=device)
        update = self.make_update(pixels, labels, index)
        update = graphed(update) if self.graph else update

        def step(number: int) -> None:
            start = number * size % (len(labels) - size + 1)
            index.copy_(order[start : start + size])
            update()

        return step

    def make_update(self, pixels: torch.Tensor, labels: torch.Tensor, index: torch.Tensor) -> Callable[[], object]:
        config, device = self.config, pixels.device
        model = with_torchs_norms(make_model(config, self.data.shape, self.data.classes, device="cpu"))
        layout = torch.channels_last if config.arch.name != "mlp" else torch.contiguous_format
        model = model.to(device, memory_format=layout)
        optimizer = torch.optim.SGD(model.parameters(), lr=config.optim.lr, momentum=momentum_of(config))
        network = torch.compile(model) if self.compiled else model

        def update() -> None:
            x = (pixels[index].float() / 255).contiguous(memory_format=layout)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                loss = F.cross_entropy(network(x), labels[index])
            loss.backward()
            optimizer.step()

        return update


def momentum_of(config: RunConfig) -> float:
    return config.optim.momentum if config.optim.name == "momentum" else 0.0


def graphed(call: Callable[[], object]) -> Callable[[], object]:
    """The kernels that a call launches, recorded once and launched as one from then on: a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
