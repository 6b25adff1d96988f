"""What isn't recorded while a run trains, read off its checkpoint or its start."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bnexp.archs.block import Block
from bnexp.archs.registry import make_model
from bnexp.batches import Order
from bnexp.bench import Contender
from bnexp.checkpoint import load_checkpoint
from bnexp.claims.claim import NoVerdictError, Runs
from bnexp.claims.values import Arm, Metric, PerSeed, Values
from bnexp.comparison import accuracy
from bnexp.compiler import compiler_problem
from bnexp.config import RunConfig
from bnexp.data import Data, load_data
from bnexp.datasets.images import Images
from bnexp.engine import Evaluator, Tensors, make_answer, pick_device, prepare_torch, start_member
from bnexp.norms import ConditionalNorm
from bnexp.probe import Probe, probe_run
from bnexp.runs import CHECKPOINT, RunRecord

SINGLE_IMAGES = 200  # of the lesson's inference cell


def config_of(run: RunRecord) -> RunConfig:
    return run.located()


def trained(run: RunRecord) -> tuple[nn.Module, Tensors, Tensors, Data]:
    """Network on the meta device, its final parameters and buffers, its data."""
    config = config_of(run)
    prepare_torch(config, torch.device("cpu"))
    data, tensors = load_data(config.dataset, run.directory), load_checkpoint(run.directory / CHECKPOINT)
    parameters, buffers = (
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in ("parameters.", "buffers.")
    )
    return make_model(config, data.shape, data.classes), parameters, buffers, data


def train_test_gap(run: RunRecord) -> float:
    """Accuracy on the images it was trained on minus that on the test images, both in evaluation mode."""
    model, parameters, buffers, data = trained(run)
    return Evaluator(model, data).evaluate(parameters, buffers, data.train).accuracy - accuracy(run)


# ---- the lesson's inference cell


@torch.no_grad()
def answers_one_by_one(run: RunRecord, training: bool) -> tuple[Tensor, Tensor]:
    """Answers to the first 200 test images, given one at a time, and the labels."""
    model, parameters, buffers, data = trained(run)
    model.train(training)
    images = data.test[:SINGLE_IMAGES]
    answers = [
        functional_call(model, (parameters, {name: t.clone() for name, t in buffers.items()}), (data.scaled(pixels),))
        for pixels in torch.split(images.pixels, 1)
    ]
    return torch.cat(answers).argmax(1), images.labels


def distinct_answers(run: RunRecord) -> float:
    return float(len(set(answers_one_by_one(run, training=True)[0].tolist())))


def right_one_by_one(training: bool) -> Metric:
    def read(run: RunRecord) -> float:
        answers, labels = answers_one_by_one(run, training)
        return float((answers == labels).double().mean())

    return read


# ---- styles


def accuracy_on_mixture(run: RunRecord, styles: tuple[str, str], images: float, norms: float) -> float:
    """Test accuracy of a conditional network with its γ and β mixed linearly, a share `norms` of the second style's,
    on images that are mixed pixel by pixel, a share `images` of the second style.
    """
    model, parameters, buffers, data = trained(run)
    first, second = (config_of(run).dataset.conditions.index(style) for style in styles)
    for name, module in model.named_modules():
        if isinstance(module, ConditionalNorm):
            for own in (f"{name}.weight", f"{name}.bias"):
                parameters[own] = torch.lerp(parameters[own][first], parameters[own][second], norms)[None]
    assert data.test.condition is not None
    one, two = (data.test[torch.eq(data.test.condition, number)] for number in (first, second))
    mixed = torch.lerp(one.pixels.float(), two.pixels.float(), images)
    with torch.no_grad():
        logits = make_answer(model.eval())(parameters, buffers, data.scaled(mixed), None)
    return float((logits.argmax(1) == one.labels).double().mean())


# ---- the loss around the checkpoints

_probed: dict[Path, list[Probe]] = {}


def over_probes(measure: Callable[[Probe], float]) -> Metric:
    """Mean over a run's checkpoints."""

    def read(run: RunRecord) -> float:
        return float(np.mean([measure(probe) for probe in probes_of(run)]))

    return read


def probes_of(run: RunRecord) -> list[Probe]:
    """At each checkpoint; done once for all claims."""
    if run.directory not in _probed:
        _probed[run.directory] = probe_run(run)
    return _probed[run.directory]


# ---- gradients at the start


def gradient_growth(run: RunRecord) -> float:
    """Factor by which the squared norm of the gradient grows from a layer to the one before it, at the start: least
    squares on its logarithm, over the outputs of the hidden linear layers, on the run's first batch.
    """
    norms = gradient_norms(run)
    return float(np.exp(-np.polyfit(np.arange(len(norms)), np.log(norms), 1)[0]))


def gradient_norms(run: RunRecord) -> list[float]:
    """Squared norm of the loss's gradient by the output of each hidden layer's linear map, in float64."""
    config = config_of(run)
    prepare_torch(config, torch.device("cpu"))
    data = load_data(config.dataset, run.directory)
    state = start_member(config, data).map(to_double)
    model, outputs = make_model(config, data.shape, data.classes), list[Tensor]()
    for block in (module for module in model.modules() if isinstance(module, Block)):
        block.layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    batch: Images = data.train[Order(config.seed, len(data.train), config.batch_size).batch(0)]
    leaves = {name: tensor.requires_grad_() for name, tensor in state.parameters.items()}
    logits = functional_call(model, (leaves, state.buffers), (data.scaled(batch.pixels).double(),))
    gradients = torch.autograd.grad(nn.functional.cross_entropy(logits, batch.labels), outputs)
    return [float(gradient.square().sum()) for gradient in gradients]


def to_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


# ---- throughput

ROUNDS, SECONDS = 20, 0.3
_measured: dict[tuple[str, str], dict[str, list[float]]] = {}


def batches_per_second(runs: Runs, mode: str) -> dict[str, list[float]]:
    """norm → updates a second of the network of these runs, a value a round; the norms take turns within a round."""
    configs = {run.config["norm"]["name"]: config_of(run) for run in runs}
    if {"none", "batch"} - configs.keys():
        raise NoVerdictError("an arm has no complete runs")
    key = (mode, repr(configs))
    if key not in _measured:
        first = configs["none"]
        device = pick_device(first.device)
        problem = compiler_problem(device.type) if mode != "eager" else None
        if problem:
            raise NoVerdictError(problem)
        prepare_torch(first, device)
        data = load_data(config_of(runs[0]).dataset, runs[0].directory)
        contenders = {norm: Contender(config, mode, 1, data) for norm, config in configs.items()}
        for _ in range(ROUNDS):
            for contender in contenders.values():
                contender.measure(SECONDS)
        _measured[key] = {norm: contender.steps for norm, contender in contenders.items()}
    return _measured[key]


def rates(arm: Arm, mode: str, norm: str) -> Values:
    """`arm`: runs that differ in their norm alone. A round stands for a seed."""

    def of(runs: Runs) -> PerSeed:
        return dict(enumerate(batches_per_second(arm.pick(runs), mode)[norm]))

    return Values(f"batches a second with norm={norm} ({mode}, {ROUNDS} interleaved rounds)", of, unit="batches/s")


def rate_ratio(arm: Arm, mode: str) -> Values:
    def of(runs: Runs) -> PerSeed:
        found = batches_per_second(arm.pick(runs), mode)
        return {number: b / n for number, (b, n) in enumerate(zip(found["batch"], found["none"], strict=True))}

    return Values(f"batches a second with norm=batch over those without ({mode}, {ROUNDS} interleaved rounds)", of)
