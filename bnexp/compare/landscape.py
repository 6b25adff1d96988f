"""Measure the loss around a run's checkpoints, and how a layer's gradient changes with steps of the layers before it.

Santurkar et al. 2018, "How does batch normalization help optimization?": §3.1 and figure 4 (loss range, gradient
distance, effective smoothness along the gradient), definition 2.1 (internal covariate shift).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bnexp.data.batches import Order
from bnexp.data.load import load_data
from bnexp.runs.config import ConfigError
from bnexp.runs.directory import kept_checkpoints
from bnexp.runs.record import RunRecord
from bnexp.runs.tensors import DamagedFileError, load_tensors
from bnexp.training.device import pick_device, prepare_torch
from bnexp.training.engine import Stack, make_loss
from bnexp.training.evaluation import Tensors

FACTORS = tuple(np.linspace(0.5, 4.0, 8).tolist())  # multiples of the learning rate: steps along the gradient


@dataclass(frozen=True)
class Probe:
    """The loss along the gradient at a checkpoint, on the batch that comes next.

    With θ the trained parameters after `step` updates, g = ∇L(θ), and θ_t = θ - t · lr · g for each t of FACTORS, from
    ½ to 4; lr is the learning rate of the next update, or of the configuration where a schedule has come down to 0:

    - loss: L(θ); losses: L(θ_t) for each t; distances: ‖∇L(θ_t) - g‖ for each t;
    - smoothness: the largest ‖∇L(θ_t) - g‖ / ‖θ_t - θ‖, or 0 where g is 0;
    - shift: linear or convolutional layer whose weights are trained → ‖G - G'‖, where G is the gradient of these at θ,
      and G' the same gradient after the trained parameters of all earlier layers of the network took the step -lr · g;
    - cosine: layer → cos(G, G').
    """

    step: int
    loss: float
    losses: list[float]
    distances: list[float]
    smoothness: float
    shift: dict[str, float]
    cosine: dict[str, float]


def probe_run(run: RunRecord) -> list[Probe]:
    """Return a probe for each checkpoint that the run kept (`eval.keep=true`), or only for its final one.

    Raises ConfigError where a checkpoint is missing or damaged, or where the run's configuration, data set, device or
    the run that it starts from (`init_from`) can't be used.
    """
    config = run.located()
    device, data = pick_device(config.device), load_data(config.dataset, run.directory)
    prepare_torch(config, device)
    landscape = Landscape(Stack([config], data, device, compiled=False))
    return [landscape.probe(path) for path in kept_checkpoints(run.directory)]


class Landscape:
    """The loss of one network as a function of its parameters; `stack` holds this network as its only member."""

    def __init__(self, stack: Stack) -> None:
        self.stack, [self.config] = stack, stack.configs
        self.loss_of = make_loss(stack.model, self.config, stack.data)
        self.order = Order(self.config.seed, len(stack.data.train), self.config.batch_size)

    def probe(self, path: Path) -> Probe:
        """Load a checkpoint into the network, and return its probe.

        Raises ConfigError where it is missing or damaged.
        """
        try:
            tensors = load_tensors(path)
        except (OSError, DamagedFileError) as error:
            raise ConfigError(f"probe: {path} is missing or damaged") from error
        step = int(tensors["record.step"])
        self.stack.restore(0, tensors)
        self.stack.prepare(step)
        member, train = self.stack.members[0], self.stack.data.train
        batch = train[self.order.batch(step).to(train.labels.device)]
        self.batch = (batch.pixels, batch.labels, batch.condition)
        theta, rate = member.parameters, float(member.numbers["lr"]) or self.config.optim.lr  # cosine ends at 0
        loss, gradient = self.gradient(theta)
        along = [self.gradient(moved(theta, gradient, factor * rate)) for factor in FACTORS]
        distances = [distance(other, gradient) for _, other in along]
        length = rate * distance(gradient, {name: torch.zeros_like(part) for name, part in gradient.items()})
        ratios = [d / (factor * length) if length else 0.0 for d, factor in zip(distances, FACTORS, strict=True)]
        shift, cosine = self.covariate_shift(theta, gradient, rate)
        return Probe(step, loss, [loss for loss, _ in along], distances, max(ratios), shift, cosine)

    def gradient(self, theta: Tensors) -> tuple[float, Tensors]:
        """Return loss and gradient at `theta` on the probe's batch, in training mode; running averages don't change."""
        leaves = {name: part.detach().requires_grad_() for name, part in theta.items()}
        buffers = {name: tensor.clone() for name, tensor in self.stack.members[0].buffers.items()}
        loss, _ = self.loss_of(leaves, buffers, self.batch)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return float(loss.detach()), dict(zip(leaves, gradients, strict=True))

    def covariate_shift(
        self, theta: Tensors, gradient: Tensors, rate: float
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Return the shift and the cosine that `Probe` defines, each as a dictionary: layer → value.

        gradient: of the loss at `theta`. rate: the learning rate of the step that the earlier layers take.
        """
        stepped, names = moved(theta, gradient, rate), in_order(list(theta))
        layers = [n for n, module in self.stack.model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        shift, cosine = dict[str, float](), dict[str, float]()
        for number, name in enumerate(names):
            if name.removesuffix(".weight") not in layers:
                continue
            mixed = {other: (stepped if place < number else theta)[other] for place, other in enumerate(names)}
            before, after = gradient[name].flatten(), self.gradient(mixed)[1][name].flatten()
            layer = name.removesuffix(".weight").removesuffix(".layer")
            shift[layer] = float((before - after).norm())
            cosine[layer] = float(torch.cosine_similarity(before, after, 0))
        return shift, cosine


def in_order(names: list[str]) -> list[str]:
    """Sort the parameters' names into the order in which the network applies them.

    That is the given order, except that the factor of a residual branch, which is given as the first parameter of its
    block, comes last in the block.
    """

    def place(name: str) -> tuple[int, bool]:
        block, factor, _ = name.rpartition("factor")
        inside = [number for number, other in enumerate(names) if other == name or (factor and other.startswith(block))]
        return inside[-1], bool(factor)

    return sorted(names, key=place)


def moved(theta: Tensors, gradient: Tensors, length: float) -> Tensors:
    """Return theta - length · gradient, for each parameter."""
    return {name: part.detach() - length * gradient[name] for name, part in theta.items()}


def distance(one: Tensors, two: Tensors) -> float:
    """Return the Euclidean distance between two sets of parameters or gradients, each taken as one vector."""
    parts: list[Tensor] = [(one[name] - two[name]).square().sum() for name in one]
    return float(torch.stack(parts).sum().sqrt())
