"""Metrics of a run's initial state: its first batch, passed forward and backward in float64, before training."""

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call

from bnexp.claims.values import Metric
from bnexp.data.batches import Order
from bnexp.data.images import Images
from bnexp.data.load import load_data
from bnexp.models.block import Block
from bnexp.models.registry import make_model
from bnexp.runs.record import RunRecord
from bnexp.training.device import prepare_torch
from bnexp.training.state import start_member


@dataclass
class InitialPass:
    """What passes through the `Block`s of a network, in their order, in its initial state.

    `inputs` and `outputs` are those of each block's layer, `activations` what its activation is given, `weights` the
    layer's weights; `gradients` are the loss's with respect to `outputs`, and `weight_gradients` to `weights`.
    """

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    activations: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    weight_gradients: list[Tensor] = field(default_factory=list)


def initial_pass(run: RunRecord) -> InitialPass:
    """Pass a run's first batch through its initial network.

    Under a norm of weights, which computes a layer itself, inputs, outputs and gradients are empty. Raises ConfigError
    where the run's configuration or data set can't be used.
    """
    config = run.located()
    prepare_torch(config, torch.device("cpu"))
    data = load_data(config.dataset, run.directory)
    state = start_member(config, data).map(to_double)
    model, passed = make_model(config, data.shape, data.classes), InitialPass()
    leaves = {name: tensor.requires_grad_() for name, tensor in state.parameters.items()}
    for name, block in model.named_modules():
        if isinstance(block, Block):
            passed.weights.append(leaves[f"{name}.layer.weight"])
            block.layer.register_forward_hook(lambda module, inputs, output: keep(passed, inputs[0], output))
            block.activation.register_forward_pre_hook(lambda module, inputs: passed.activations.append(inputs[0]))
    batch: Images = data.train[Order(config.seed, len(data.train), config.batch_size).batch(0)]
    logits = functional_call(model, (leaves, state.buffers), (data.scaled(batch.pixels).double(),))
    loss = nn.functional.cross_entropy(logits, batch.labels)
    found = torch.autograd.grad(loss, [*passed.outputs, *passed.weights])
    passed.gradients, passed.weight_gradients = (
        list(found[: len(passed.outputs)]),
        list(found[len(passed.outputs) :]),
    )
    return passed


def keep(passed: InitialPass, given: Tensor, output: Tensor) -> None:
    """Keep the input and the output of a block's layer."""
    passed.inputs.append(given.detach())
    passed.outputs.append(output)


def to_double(tensor: Tensor) -> Tensor:
    """Return a floating-point tensor in float64, and any other as it is."""
    return tensor.double() if tensor.is_floating_point() else tensor


def gradient_norms(run: RunRecord) -> list[float]:
    """Return the squared norms of the loss's gradients with respect to the output of each `Block`'s layer.

    In an MLP these are its hidden linear layers.
    """
    return [float(gradient.square().sum()) for gradient in initial_pass(run).gradients]


def gradient_growth(run: RunRecord) -> float:
    """Return the factor by which the squared gradient norm grows from a hidden layer to the one before it.

    It is fitted by least squares to the logarithms of `gradient_norms`.
    """
    norms = gradient_norms(run)
    return float(np.exp(-np.polyfit(np.arange(len(norms)), np.log(norms), 1)[0]))


def log_kurtosis(run: RunRecord) -> float:
    """Return log10 of the kurtosis of the gradients with respect to the weights of the middle layer; normal: 0.48."""
    gradients = initial_pass(run).weight_gradients
    middle = gradients[len(gradients) // 2].flatten().numpy()
    return float(np.log10(stats.kurtosis(middle, fisher=False)))


def alignment(run: RunRecord) -> float:
    """Return the mean over convolutions of log10(Σ |Σ d x| / Σ Σ |d x|), over a weight's examples and positions.

    The inner sum is a weight's gradient, d that of an output and x the input that it belongs to. It is 0 where all
    summands of each weight have one sign, less where they cancel.
    """
    passed, ratios = initial_pass(run), list[float]()
    for x, d, weight, gradient in zip(
        passed.inputs, passed.gradients, passed.weights, passed.weight_gradients, strict=True
    ):
        if weight.dim() == 4:
            kernel = torch.ones_like(weight, requires_grad=True)
            summed = nn.functional.conv2d(x.abs(), kernel, padding=weight.shape[-1] // 2)
            (absolute,) = torch.autograd.grad((summed * d.abs()).sum(), kernel)
            ratios.append(float(torch.log10(gradient.abs().sum() / absolute.sum())))
    return float(np.mean(ratios))


def mean_shift(layer: int) -> Metric:
    """Return a function: run → mean over channels of |mean| / standard deviation of what an activation is given.

    `layer` counts the activations, from the end where it is negative.
    """

    def read(run: RunRecord) -> float:
        x = initial_pass(run).activations[layer].detach()
        values = x.transpose(0, 1).flatten(1)
        return float((values.mean(1).abs() / values.std(1).clamp(min=1e-12)).mean())

    return read
