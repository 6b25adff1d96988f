"""Metrics that runs do not record: measured with a run's checkpoints, its initial state or its configuration."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from bnexp.claims.claim import NoVerdictError, PerSeed, Runs
from bnexp.claims.values import Arm, Metric, Values
from bnexp.compare.arms import accuracy
from bnexp.compare.landscape import Probe, probe_run
from bnexp.data.load import Data, load_data
from bnexp.models.norms import ConditionalNorm
from bnexp.models.registry import make_model
from bnexp.runs.directory import CHECKPOINT
from bnexp.runs.files import read_json
from bnexp.runs.record import RunRecord
from bnexp.runs.tensors import load_tensors
from bnexp.training.device import prepare_torch
from bnexp.training.evaluation import Evaluator, Tensors, make_answer
from bnexp.training.recalibrate import keep_last_batch

ADAPTED = 2000  # images of a distribution by which statistics are adapted to it
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
def right_one_by_one(run: RunRecord) -> float:
    """Return the share of the first 200 test images that are classified rightly one by one, in evaluation mode."""
    model, parameters, buffers, data = trained(run)
    model.eval()
    images = data.test[:SINGLE_IMAGES]
    answers = [
        functional_call(model, (parameters, buffers), (data.scaled(pixels),))
        for pixels in torch.split(images.pixels, 1)
    ]
    return float((torch.cat(answers).argmax(1) == images.labels).double().mean())


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


# ---- batch statistics of other images


def accuracy_on_altered(run: RunRecord, style: str, adapted: bool) -> float:
    """Return the test accuracy on altered images (one of dataset.conditions) of a network with batch normalization.

    Its statistics are the running averages or, if `adapted`, those of ADAPTED altered training images, without labels.
    """
    model, parameters, buffers, _ = trained(run)
    config = run.located()
    altered = replace(config.dataset, conditions=[style])
    data, answer = load_data(altered, run.directory), make_answer(keep_last_batch(model))
    if adapted:
        momenta = {name: torch.ones_like(value) for name, value in buffers.items() if name.endswith(".momentum")}
        buffers = {name: tensor.clone() for name, tensor in (buffers | momenta).items()}
        model.train()
        with torch.no_grad():
            answer(parameters, buffers, data.scaled(data.train.pixels[:ADAPTED]), None)
    model.eval()
    logits = answer(parameters, buffers, data.scaled(data.test.pixels), None).detach()
    return float((logits.argmax(1) == data.test.labels).double().mean())


# ---- throughput

STACK = 8
# How a step with batch normalization is run: description → norm and mode of `bnexp bench`.
FORMS = {
    "operation by operation": ("batch_scratch", "eager"),
    "torch's kernel": ("batch", "eager"),
    "compiled": ("batch", "compiled"),
    f"stacked, {STACK} runs": ("batch", "stacked"),
}
Rates = dict[tuple[str, str], float]  # norm and mode → training steps a second
_launched: dict[tuple[str, int], Rates] = {}


def launch(overrides: str, seed: int) -> Rates:
    """Return norm and mode → the training steps a second that a launch of `bnexp bench` measures, of a process its own.

    It is measured once for each seed, for all claims. Compiled and stacked steps are left out if nothing can be
    compiled. Raises NoVerdictError where the command fails.
    """
    if (overrides, seed) not in _launched:
        with TemporaryDirectory() as out:
            words = [*overrides.split(), f"seed={seed}", "norm=none,batch,batch_scratch", f"stack={STACK}", "rounds=3"]
            command = [sys.executable, "-m", "bnexp", "bench", *words, f"out={out}"]
            done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
            if done.returncode:
                raise NoVerdictError(f"bnexp bench failed: {done.stderr.strip()[-200:]}")
            rows = read_json(Path(out) / "bench.json")["rows"]
        _launched[overrides, seed] = {(row["norm"], row["mode"]): row["steps_per_second"]["median"] for row in rows}
    return _launched[overrides, seed]


def rates(overrides: str, arm: Arm, mode: str, norm: str) -> Values:
    """Return the `Values` of training steps a second with a norm: one launch for each seed of `arm`.

    Computing the values raises NoVerdictError where this norm can't be measured in this mode.
    """

    def of(runs: Runs) -> PerSeed:
        measured = {run.seed: launch(overrides, run.seed) for run in arm.pick(runs)}
        if any((norm, mode) not in each for each in measured.values()):
            raise NoVerdictError(f"{mode} steps need a compiler that works")
        return {seed: each[norm, mode] for seed, each in measured.items()}

    return Values(f"batches a second with norm={norm} ({mode}, a launch for each seed)", of, unit="batches/s")


def rate_ratio(overrides: str, arm: Arm) -> Values:
    """Return the `Values` of steps a second with batch normalization, operation by operation, over those without.

    There is a launch of `bnexp bench` for each seed of `arm`. `choice` gives the mean ratios of all FORMS that can be
    measured as text.
    """

    def ratio(run: RunRecord, form: tuple[str, str]) -> float:
        measured = launch(overrides, run.seed)
        return measured[form] / measured["none", form[1]]

    def of(runs: Runs) -> PerSeed:
        return {run.seed: ratio(run, FORMS["operation by operation"]) for run in arm.pick(runs)}

    def all_forms(runs: Runs) -> str:
        picked = arm.pick(runs)
        known = {name: form for name, form in FORMS.items() if all(form in launch(overrides, r.seed) for r in picked)}
        texts = [f"{name} {np.mean([ratio(run, form) for run in picked]):.2f}" for name, form in known.items()]
        return "batch over none: " + ", ".join(texts)

    label = "batches a second with norm=batch_scratch over those without (eager, a launch for each seed)"
    return Values(label, of, choice=all_forms)
