"""Metrics that runs do not record: measured with a run's checkpoints, its initial state or its configuration."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from bnexp.claims.claim import NoVerdictError, Runs
from bnexp.claims.values import NO_RUNS, Arm, Metric, PerSeed, Values
from bnexp.compare.arms import accuracy
from bnexp.compare.landscape import Probe, probe_run
from bnexp.compare.throughput import Contender
from bnexp.data.batches import Order
from bnexp.data.images import Images
from bnexp.data.load import Data, load_data
from bnexp.models.block import Block
from bnexp.models.norms import ConditionalNorm
from bnexp.models.registry import make_model
from bnexp.runs.directory import CHECKPOINT
from bnexp.runs.record import RunRecord
from bnexp.runs.tensors import load_tensors
from bnexp.training.compiler import compiler_problem
from bnexp.training.device import pick_device, prepare_torch
from bnexp.training.evaluation import Evaluator, Tensors, make_answer
from bnexp.training.state import start_member

SINGLE_IMAGES = 200  # as many as the lesson's inference cell tests


def trained(run: RunRecord) -> tuple[nn.Module, Tensors, Tensors, Data]:
    """Return a run's network on the meta device, its final parameters and its buffers (name → tensor), and its data.

    Parameters that were not trained are among the buffers. Also prepares torch for the run on the CPU
    (`prepare_torch`). Raises OSError or DamagedFileError where the checkpoint is missing or damaged, and ConfigError
    where the run's configuration or data set can't be used.
    """
    config = run.located()
    prepare_torch(config, torch.device("cpu"))
    data, tensors = load_data(config.dataset, run.directory), load_tensors(run.directory / CHECKPOINT)
    parameters, buffers = (
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in ("parameters.", "buffers.")
    )
    return make_model(config, data.shape, data.classes), parameters, buffers, data


def train_test_gap(run: RunRecord) -> float:
    """Return the accuracy on the training images minus that on the test images, both in evaluation mode."""
    model, parameters, buffers, data = trained(run)
    return Evaluator(model, data).evaluate(parameters, buffers, data.train).accuracy - accuracy(run)


# ---- the lesson's inference cell


@torch.no_grad()
def answers_one_by_one(run: RunRecord, training: bool) -> tuple[Tensor, Tensor]:
    """Return the classes predicted for the first 200 test images, in batches of one, and the labels; both (200,).

    The network is in training mode or, where `training` is false, in evaluation mode.
    """
    model, parameters, buffers, data = trained(run)
    model.train(training)
    images = data.test[:SINGLE_IMAGES]
    answers = [
        functional_call(model, (parameters, {name: t.clone() for name, t in buffers.items()}), (data.scaled(pixels),))
        for pixels in torch.split(images.pixels, 1)
    ]
    return torch.cat(answers).argmax(1), images.labels


def distinct_answers(run: RunRecord) -> float:
    """Return the number of different classes that `answers_one_by_one` predicts in training mode."""
    return float(len(set(answers_one_by_one(run, training=True)[0].tolist())))


def right_one_by_one(training: bool) -> Metric:
    """Return a function: run → share of the images of `answers_one_by_one` that are classified rightly."""

    def read(run: RunRecord) -> float:
        answers, labels = answers_one_by_one(run, training)
        return float((answers == labels).double().mean())

    return read


# ---- styles


def accuracy_on_mixture(run: RunRecord, styles: tuple[str, str], images: float, norms: float) -> float:
    """Return the test accuracy of a conditional network on mixtures of the two `styles`.

    `images` is the share of the second style in each pixel of an image, and `norms` that in each γ and β.
    """
    model, parameters, buffers, data = trained(run)
    first, second = (run.located().dataset.conditions.index(style) for style in styles)
    for name, module in model.named_modules():
        if isinstance(module, ConditionalNorm):
            for key in (f"{name}.weight", f"{name}.bias"):
                parameters[key] = torch.lerp(parameters[key][first], parameters[key][second], norms)[None]
    assert data.test.condition is not None
    one, two = (data.test[torch.eq(data.test.condition, number)] for number in (first, second))
    mixed = torch.lerp(one.pixels.float(), two.pixels.float(), images)
    with torch.no_grad():
        logits = make_answer(model.eval())(parameters, buffers, data.scaled(mixed), None)
    return float((logits.argmax(1) == one.labels).double().mean())


# ---- the loss around the checkpoints

_probed: dict[Path, list[Probe]] = {}


def over_probes(measure: Callable[[Probe], float]) -> Metric:
    """Return a function that gives the mean of `measure` over a run's probes."""

    def read(run: RunRecord) -> float:
        return float(np.mean([measure(probe) for probe in probes_of(run)]))

    return read


def probes_of(run: RunRecord) -> list[Probe]:
    """Return a run's probes, one for each checkpoint; they are computed once, for all claims. Raises as `probe_run`."""
    if run.directory not in _probed:
        _probed[run.directory] = probe_run(run)
    return _probed[run.directory]


# ---- gradients at the start


def gradient_growth(run: RunRecord) -> float:
    """Return the factor by which the squared gradient norm grows from a hidden layer to the one before it.

    It is fitted by least squares to the logarithms of `gradient_norms`, before training.
    """
    norms = gradient_norms(run)
    return float(np.exp(-np.polyfit(np.arange(len(norms)), np.log(norms), 1)[0]))


def gradient_norms(run: RunRecord) -> list[float]:
    """Return the squared norms of the loss's gradients with respect to the output of each `Block`'s layer.

    In an MLP these are its hidden linear layers. The network is in its initial state, the batch is the run's first, and
    the computation is in float64.
    """
    config = run.located()
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
    """Return a floating-point tensor in float64, and any other as it is."""
    return tensor.double() if tensor.is_floating_point() else tensor


# ---- throughput

ROUNDS, SECONDS, STACK = 20, 0.3, 8
# How a step with batch normalization is run: description → norm and mode of `bnexp bench`.
FORMS = {
    "operation by operation": ("batch_scratch", "eager"),
    "torch's kernel": ("batch", "eager"),
    "compiled": ("batch", "compiled"),
    f"stacked, {STACK} runs": ("batch", "stacked"),
}
Rates = dict[tuple[str, str], list[float]]  # norm and mode → training steps a second, one value for each round
_measured: dict[str, Rates] = {}


def steps_per_second(runs: Runs) -> Rates:
    """Return norm and mode → the training steps a second, one value for each round, of all FORMS and without a norm.

    The network is that of the runs with norm=none and norm=batch; NoVerdictError is raised if either is missing. Rounds
    are interleaved. Claims with the same configurations share one measurement. Compiled and stacked steps are left out
    if nothing can be compiled.
    """
    configs = {run.config["norm"]["name"]: run.located() for run in runs}
    if {"none", "batch"} - configs.keys():
        raise NoVerdictError(NO_RUNS)
    key = repr(configs)
    if key not in _measured:
        none, batch = configs["none"], configs["batch"]
        device = pick_device(none.device)
        prepare_torch(none, device)
        data = load_data(none.dataset, runs[0].directory)
        configs["batch_scratch"] = replace(batch, norm=replace(batch.norm, name="batch_scratch"))
        modes = ("eager",) if compiler_problem(device.type) else ("eager", "compiled", "stacked")
        forms = [form for form in [*(("none", mode) for mode in modes), *FORMS.values()] if form[1] in modes]
        contenders = {
            (norm, mode): Contender(configs[norm], mode, STACK if mode == "stacked" else 1, data)
            for norm, mode in forms
        }
        for _ in range(ROUNDS):
            for contender in contenders.values():
                contender.measure(SECONDS)
        _measured[key] = {form: contender.steps for form, contender in contenders.items()}
    return _measured[key]


def rates(arm: Arm, mode: str, norm: str) -> Values:
    """Return the `Values` of training steps a second with a norm: one for each round in place of each seed.

    The runs of `arm` differ in their norm alone. Computing the values raises NoVerdictError where `steps_per_second`
    does not measure this norm in this mode, or `arm` lacks runs with norm=none or norm=batch.
    """

    def of(runs: Runs) -> PerSeed:
        measured = steps_per_second(arm.pick(runs))
        if (norm, mode) not in measured:
            raise NoVerdictError(f"{mode} steps need a compiler that works")
        return dict(enumerate(measured[norm, mode]))

    return Values(f"batches a second with norm={norm} ({mode}, {ROUNDS} interleaved rounds)", of, unit="batches/s")


def rate_ratio(arm: Arm) -> Values:
    """Return the `Values` of steps a second with batch normalization, operation by operation, over those without.

    There is a value for each round in place of one for each seed. `choice` gives the mean ratios of all FORMS that can
    be measured as text. Computing either raises NoVerdictError where `arm` lacks runs with norm=none or norm=batch.
    """

    def ratios(runs: Runs, form: tuple[str, str]) -> list[float]:
        measured = steps_per_second(arm.pick(runs))
        return [b / n for b, n in zip(measured[form], measured["none", form[1]], strict=True)]

    def of(runs: Runs) -> PerSeed:
        return dict(enumerate(ratios(runs, FORMS["operation by operation"])))

    def all_forms(runs: Runs) -> str:
        measured = steps_per_second(arm.pick(runs))
        texts = [f"{name} {np.mean(ratios(runs, form)):.2f}" for name, form in FORMS.items() if form in measured]
        return "batch over none: " + ", ".join(texts)

    label = f"batches a second with norm=batch_scratch over those without (eager, {ROUNDS} interleaved rounds)"
    return Values(label, of, choice=all_forms)
