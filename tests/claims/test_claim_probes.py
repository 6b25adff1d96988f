"""What claims read off checkpoints and initial states, against the same computed in another way, on the digits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Bnexp
from safetensors.torch import load_file
from torch import Tensor, nn

from bnexp.claims import probes
from bnexp.claims.claim import NoVerdictError
from bnexp.claims.initial import alignment, gradient_growth, gradient_norms, log_kurtosis, mean_shift
from bnexp.claims.probes import (
    accuracy_on_altered,
    accuracy_on_mixture,
    launch,
    over_probes,
    rate_ratio,
    rates,
    right_one_by_one,
    train_test_gap,
)
from bnexp.claims.values import where
from bnexp.cli.main import run
from bnexp.compare.landscape import probe_run
from bnexp.data.batches import Order
from bnexp.data.load import load_data
from bnexp.models.init import initialize
from bnexp.models.registry import make_model
from bnexp.runs.parse import recorded
from bnexp.runs.record import RunRecord, find_runs
from bnexp.runs.tensors import load_tensors

OVERRIDES = ("dataset=digits", "arch.hidden=[12,10]", "optim.lr=0.2", "steps=60", "eval.first_every=30")
STYLES = ("plain", "edges")


# ---- networks without and with batch normalization


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunRecord]:
    folder = tmp_path_factory.mktemp("probes") / "sweep"
    overrides = ["dataset=digits", "steps=60", "optim.lr=0.1", "init=kaiming", "arch.depth=4", "norm=none,batch"]
    assert run(["train", "-m", *overrides, f"hydra.sweep.dir={folder}"]) == 0
    return {found.config["norm"]["name"]: found for found in find_runs([folder])}


def by_hand(found: RunRecord) -> nn.Module:
    """The trained network, its weights read with safetensors alone."""
    config = found.located()
    data = load_data(config.dataset)
    model = make_model(config, data.shape, data.classes, device="cpu")
    tensors = load_file(Path(found.directory, "checkpoint.safetensors"))
    state = {name.split(".", 1)[1]: t for name, t in tensors.items() if name.split(".")[0] in ("parameters", "buffers")}
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_gap_between_training_and_test_accuracy(runs: dict[str, RunRecord], norm: str) -> None:
    model, data = by_hand(runs[norm]).eval(), load_data(runs[norm].located().dataset)
    train, test = (
        float((model(data.scaled(images.pixels)).argmax(1) == images.labels).double().mean())
        for images in (data.train, data.test)
    )
    assert train_test_gap(runs[norm]) == pytest.approx(train - test, abs=1e-6)
    assert train > 0.3


def test_single_images_by_population_statistics(runs: dict[str, RunRecord]) -> None:
    """One by one or all together: in evaluation mode an image's answer doesn't depend on the others."""
    model, data = by_hand(runs["batch"]).eval(), load_data(runs["batch"].located().dataset)
    images = data.test[:200]
    together = float((model(data.scaled(images.pixels)).argmax(1) == images.labels).double().mean())
    assert right_one_by_one(runs["batch"]) == pytest.approx(together, abs=0.011)  # two images at a tie, at most
    assert together > 0.5


def test_gradient_norms_of_a_plain_network_by_hand(runs: dict[str, RunRecord]) -> None:
    """Backpropagation written out: δ of a layer is (δ of the next, through its weights), where ReLU let it pass."""
    config = runs["none"].located()
    data = load_data(config.dataset)
    model = make_model(config, data.shape, data.classes, device="cpu")
    initialize(model, config.init, config.seed)
    weights = [p.detach().double() for name, p in model.named_parameters() if name.endswith("weight")]
    batch = data.train[Order(config.seed, len(data.train), config.batch_size).batch(0)]
    activation, outputs = data.scaled(batch.pixels).double().flatten(1), []
    for weight in weights[:-1]:
        outputs.append(activation @ weight.T)
        activation = outputs[-1].clamp_min(0)
    delta = torch.softmax(activation @ weights[-1].T, 1) - nn.functional.one_hot(batch.labels, data.classes)
    delta, expected = delta / len(batch), []
    for weight, output in zip(reversed(weights[1:]), reversed(outputs), strict=True):
        delta = (delta @ weight) * (output > 0)
        expected.append(float(delta.square().sum()))
    norms = gradient_norms(runs["none"])
    assert norms == pytest.approx(expected[::-1], rel=1e-9)
    slope = np.polyfit(range(4), np.log(norms), 1)[0]
    assert gradient_growth(runs["none"]) == pytest.approx(np.exp(-slope))


# ---- the initial state, and other images


def start_of(found: RunRecord) -> tuple[list[Tensor], Tensor, Tensor]:
    """The initial weights of a plain network, and its first batch, in float64."""
    config = found.located()
    data = load_data(config.dataset)
    model = make_model(config, data.shape, data.classes, device="cpu")
    initialize(model, config.init, config.seed)
    batch = data.train[Order(config.seed, len(data.train), config.batch_size).batch(0)]
    weights = [p.detach().double() for name, p in model.named_parameters() if name.endswith("weight")]
    return weights, data.scaled(batch.pixels).double(), batch.labels


def test_mean_shift_of_a_plain_network_by_hand(runs: dict[str, RunRecord]) -> None:
    weights, x, _ = start_of(runs["none"])
    x, shifts = x.flatten(1), []
    for weight in weights[:-1]:
        x = x @ weight.T
        spread = x.std(0).clamp(min=1e-12)
        shifts.append(float((x.mean(0).abs() / spread).mean()))
        x = x.clamp_min(0)
    assert [mean_shift(layer)(runs["none"]) for layer in (0, 1, -1)] == pytest.approx([*shifts[:2], shifts[-1]])
    assert mean_shift(-1)(runs["batch"]) < 1e-9, "batch normalization leaves none before γ and β are trained"


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    folder = tmp_path_factory.mktemp("convolutional") / "run"
    words = [
        "dataset=digits",
        "arch=convnet",
        "arch.channels=[3,4]",
        "arch.dense=8",
        "norm=none",
        "steps=1",
        "batch_size=9",
    ]
    assert run(["train", *words, f"hydra.run.dir={folder}"]) == 0
    [found] = find_runs([folder])
    return found


def test_alignment_and_tails_by_hand(convolutional: RunRecord) -> None:
    """Every summand of a weight's gradient, from unfolded inputs; gradients by autograd of the network written out."""
    (first, second, dense, last), x, labels = start_of(convolutional)
    leaves = [weight.requires_grad_() for weight in (first, second, dense, last)]
    given, outputs = [x], []
    for weight in leaves[:2]:
        outputs.append(F.conv2d(given[-1], weight, padding=1))
        given.append(F.max_pool2d(outputs[-1].relu(), 2))
    logits = (given[-1].flatten(1) @ leaves[2].T).relu() @ leaves[3].T
    gradients = torch.autograd.grad(F.cross_entropy(logits, labels), [*outputs, *leaves[:3]])
    ratios = []
    for inputs, d, gradient in zip(given, gradients[:2], gradients[2:4], strict=False):
        patches = F.unfold(inputs.detach(), 3, padding=1)  # (N, inputs · 9, positions)
        summands = torch.einsum("nop,nip->oinp", d.flatten(2), patches).flatten(2)
        torch.testing.assert_close(summands.sum(2).reshape(gradient.shape), gradient)
        ratios.append(float(torch.log10(summands.sum(2).abs().sum() / summands.abs().sum())))
    assert alignment(convolutional) == pytest.approx(np.mean(ratios))
    middle = gradients[3].flatten().numpy()  # of three layers before the classifier
    moments = [np.mean((middle - middle.mean()) ** power) for power in (4, 2)]
    assert log_kurtosis(convolutional) == pytest.approx(np.log10(moments[0] / moments[1] ** 2))


@pytest.mark.parametrize("adapted", [False, True])
def test_accuracy_on_altered_images_by_hand(runs: dict[str, RunRecord], adapted: bool) -> None:
    """Layer by layer: with the running averages, or with mean and variance of the altered training images."""
    found = runs["batch"]
    tensors = load_file(Path(found.directory, "checkpoint.safetensors"))
    data = load_data(replace(found.located().dataset, conditions=["inverted"]))
    known, x = (data.scaled(images.pixels).flatten(1) for images in (data.train[:2000], data.test))
    for number in range(4):
        layer, norm = f"parameters.hidden.{number}.layer", f"hidden.{number}.norm"
        mean, variance = (tensors[f"buffers.{norm}.{name}"] for name in ("running_mean", "running_var"))
        known, x = (F.linear(values, tensors[f"{layer}.weight"]) for values in (known, x))
        if adapted:
            mean, variance = known.mean(0), known.var(0, correction=0)
        gamma, beta = (tensors[f"parameters.{norm}.{name}"] for name in ("weight", "bias"))
        known, x = (F.batch_norm(values, mean, variance, gamma, beta).relu() for values in (known, x))
    logits = F.linear(x, tensors["parameters.classifier.weight"], tensors["parameters.classifier.bias"])
    expected = float((logits.argmax(1) == data.test.labels).double().mean())
    assert accuracy_on_altered(found, "inverted", adapted) == pytest.approx(expected, abs=2 / len(data.test))


# ---- throughput


@pytest.mark.extra
def test_a_launch_measures_in_a_process_of_its_own(runs: dict[str, RunRecord]) -> None:
    words, both = "dataset=digits modes=eager seconds=0.02", where("norm=none")
    picked = [runs["none"]]
    ratio = rate_ratio(words, both)
    [value] = ratio.of(picked).values()
    none, batch = (rates(words, both, "eager", norm).of(picked)[0] for norm in ("none", "batch_scratch"))
    assert value == pytest.approx(batch / none), "measured once"
    assert 0.1 < value < 1.2
    assert ratio.choice(picked).startswith("batch over none: operation by operation 0.")
    with pytest.raises(NoVerdictError, match="compiled steps need a compiler"):
        rates(words, both, "compiled", "batch").of(picked)
    with pytest.raises(NoVerdictError, match=r"bnexp bench failed: .*modes=slow"):
        launch("dataset=digits modes=slow", 0)


# ---- conditional networks, and probes of checkpoints

MADE: dict[tuple[str, ...], RunRecord] = {}


def trained(bnexp: Bnexp, *overrides: str) -> RunRecord:
    if overrides not in MADE:
        assert bnexp("train", *OVERRIDES, *overrides, "hydra.run.dir=mine").status == 0
        [MADE[overrides]] = find_runs([Path("mine").resolve()])
    return MADE[overrides]


def answers(tensors: dict[str, Tensor], x: Tensor, share: float) -> Tensor:
    """Return the answers of the network with its two γ and β mixed, layer by layer."""
    x = x.flatten(1)
    for number in range(2):
        layer, norm = f"parameters.hidden.{number}.layer", f"hidden.{number}.norm"
        mean, variance = (tensors[f"buffers.{norm}.norm.{name}"] for name in ("running_mean", "running_var"))
        gamma, beta = (
            (1 - share) * tensors[f"parameters.{norm}.{name}"][0] + share * tensors[f"parameters.{norm}.{name}"][1]
            for name in ("weight", "bias")
        )
        x = F.batch_norm(F.linear(x, tensors[f"{layer}.weight"]), mean, variance, gamma, beta).relu()
    return F.linear(x, tensors["parameters.classifier.weight"], tensors["parameters.classifier.bias"]).argmax(1)


@pytest.mark.parametrize(("images", "norms"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.5), (0.25, 1.0)])
def test_accuracy_on_mixed_images(bnexp: Bnexp, images: float, norms: float) -> None:
    run = trained(bnexp, "norm=conditional_batch", f"dataset.conditions=[inverted,{','.join(STYLES)}]")
    tensors, data = load_tensors(run.directory / "checkpoint.safetensors"), load_data(recorded(run.config).dataset)
    pair = {name: t[1:] if name.startswith("parameters.") and ".norm." in name else t for name, t in tensors.items()}
    third = len(data.test) // 3
    plain, edges = (data.test.pixels[place * third : (place + 1) * third].float() for place in (1, 2))
    right = answers(pair, data.scaled((1 - images) * plain + images * edges), norms) == data.test.labels[:third]
    assert 0.2 < right.double().mean() < 1
    assert accuracy_on_mixture(run, STYLES, images, norms) == pytest.approx(float(right.double().mean()), abs=2 / third)


def test_a_runs_checkpoints_are_probed_once(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = trained(bnexp, "norm=batch", "eval.keep=true"), list[Path]()

    def counted(run: RunRecord) -> list[probes.Probe]:
        calls.append(run.directory)
        return probe_run(run)

    monkeypatch.setattr(probes, "probe_run", counted)
    expected = np.mean([probe.smoothness for probe in probe_run(run)])
    assert over_probes(lambda probe: probe.smoothness)(run) == pytest.approx(expected)
    assert over_probes(lambda probe: probe.step)(run) == 30
    assert calls == [run.directory]
