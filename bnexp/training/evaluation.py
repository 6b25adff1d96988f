"""The evaluation of one network: loss, accuracy, and percentiles of the inputs to its activations."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bnexp.data.images import Images
from bnexp.data.load import Data
from bnexp.models.norms import ConditionalNorm

Tensors = dict[str, Tensor]


ShouldStop = Callable[[], bool]  # returns whether the process was asked to stop


MOST_IMAGES = 500  # largest batch of an evaluation, and the number of images that percentiles are taken over
WORKING_SET = {"cuda": 2**27}  # bytes of the largest output of a layer for one batch; other devices: CACHES
CACHES = 2**23  # about those of a core: a ConvNet evaluates 2.3 times as many images/s as by 500 images


PERCENTILES = (15, 50, 85)  # as in Ioffe & Szegedy 2015, figure 1b, c


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    loss: mean cross-entropy. accuracy: fraction of images that are classified correctly. activations: "layer/p15" →
    percentile of the inputs to the activation of the layer's first unit or channel, over the first 500 images.
    """

    loss: float
    accuracy: float
    activations: dict[str, float]


class Stopped(Exception):
    """An evaluation was abandoned because the process was asked to stop."""


def never_stop() -> bool:
    """Return False: the `ShouldStop` of a caller that can't be stopped."""
    return False


Answer = Callable[[Tensors, Tensors, Tensor, Tensor | None], Tensor]


def make_answer(model: nn.Module) -> Answer:
    """Make the function (parameters, buffers, images x, condition) → logits of a model.

    Shapes: x (N, C, H, W); condition (N,), or None if the data set has no conditions; logits (N, classes).
    """
    conditional = conditional_norms(model)

    def answer(parameters: Tensors, buffers: Tensors, x: Tensor, condition: Tensor | None) -> Tensor:
        if condition is None:
            condition = torch.zeros(1, dtype=torch.int64, device=x.device)
        values = (parameters, buffers, {f"{name}.condition": condition for name in conditional})
        # without tie_weights=False, the search for tied weights would take a tenth of the time
        logits: Tensor = functional_call(model, values, (x,), tie_weights=False)
        return logits

    return answer


def answer_of(model: nn.Module) -> Callable[[Tensor, Tensor | None], Tensor]:
    """Make the function (images x, condition) → logits of a model with its own parameters, shapes as in make_answer."""
    conditional = conditional_norms(model).values()

    def answer(x: Tensor, condition: Tensor | None) -> Tensor:
        for norm in conditional:
            norm.condition = torch.zeros(1, dtype=torch.int64, device=x.device) if condition is None else condition
        logits: Tensor = model(x)
        return logits

    return answer


def conditional_norms(model: nn.Module) -> dict[str, ConditionalNorm]:
    """Return the conditional norms of a network by their names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ConditionalNorm)}


def activation_columns(model: nn.Module) -> list[str]:
    """Return the names of the activations' percentiles, such as "hidden.0/p15", in the order of the network."""
    return [f"{name}/p{p}" for name in activations(model) for p in PERCENTILES]


def activations(model: nn.Module) -> dict[str, nn.Module]:
    """Return the activation modules by the name of their layer or block, in the order of the network."""
    modules = model.named_modules()
    return {name.removesuffix(".activation"): module for name, module in modules if name.endswith(".activation")}


class Evaluator:
    """An evaluator of members, one by one, uncompiled and in fp32, so that no member's results depend on the others."""

    def __init__(self, model: nn.Module, data: Data) -> None:
        self.model, self.data = model.eval(), data
        self.answer, self.batch = answer_of(model), 0
        self.inputs: dict[str, list[Tensor]] = {name: [] for name in activations(model)}
        for name, activation in activations(model).items():
            activation.register_forward_pre_hook(partial(self.record, name))

    def record(self, name: str, module: nn.Module, arguments: tuple[Tensor]) -> None:
        """Save a copy of a batch's inputs to an activation, for its first unit or channel, unless 500 images are saved.

        This is a forward pre-hook of the activation. A view instead of a copy would hold all channels in memory.
        """
        if sum(map(len, self.inputs[name])) < MOST_IMAGES:
            self.inputs[name].append(arguments[0][:, 0].clone())

    @torch.no_grad()
    def evaluate(
        self, parameters: Tensors, buffers: Tensors, images: Images, should_stop: ShouldStop = never_stop
    ) -> Evaluation:
        """Evaluate a member on all images, in batches of the size that `batch_size` returns.

        `should_stop` is called before each batch, since deep networks take seconds. Raises Stopped if it returns True.
        """
        self.model.load_state_dict(parameters | buffers, assign=True)
        self.batch = self.batch or self.batch_size(images[:1])
        for inputs in self.inputs.values():
            inputs.clear()
        parts: list[Tensor] = []
        for start in range(0, len(images), self.batch):
            if should_stop():
                raise Stopped
            parts.append(self.logits(images[start : start + self.batch]))
        logits = torch.cat(parts)  # sums don't depend on the batches
        loss = float(F.cross_entropy(logits, images.labels))
        return Evaluation(loss, int((logits.argmax(1) == images.labels).sum()) / len(images), self.percentiles())

    def logits(self, images: Images) -> Tensor:
        """Return the logits of images, (N, classes)."""
        return self.answer(self.data.scaled(images.pixels), images.condition)

    def batch_size(self, image: Images) -> int:
        """Return how many images are evaluated at once, given one image to measure the largest output of a layer."""
        sizes: list[int] = []
        hooks = [
            module.register_forward_hook(lambda m, x, y: sizes.append(y.nbytes)) for module in self.model.modules()
        ]
        self.logits(image)
        for hook in hooks:
            hook.remove()
        room = WORKING_SET.get(self.data.scale.device.type, CACHES)
        return max(1, min(room // max(sizes), MOST_IMAGES))

    def percentiles(self) -> dict[str, float]:
        """Return the percentiles as {"layer/p15": value}; each is the nearest recorded value, not interpolated."""
        first = {layer: torch.cat(inputs)[:MOST_IMAGES] for layer, inputs in self.inputs.items()}
        ordered = {layer: values.float().flatten().sort().values for layer, values in first.items()}
        return {
            f"{layer}/p{p}": float(values[round(p / 100 * (len(values) - 1))])
            for layer, values in ordered.items()
            for p in PERCENTILES
        }
