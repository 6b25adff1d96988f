"""bnexp probe: the loss around checkpoints, against torch's modules and autograd, and what the command leaves."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Bnexp
from torch import Tensor, nn

from bnexp.compare.landscape import FACTORS, Probe, in_order, probe_run
from bnexp.data.batches import Order
from bnexp.data.load import load_data
from bnexp.runs.directory import kept_checkpoints
from bnexp.runs.parse import recorded
from bnexp.runs.record import RunRecord, find_runs
from bnexp.runs.tensors import load_tensors

LR = 0.2
WORDS = ("dataset=digits", "arch.hidden=[12,10]", f"optim.lr={LR}", "steps=40", "eval.first_every=20", "batch_size=32")


def test_a_branchs_factor_stands_behind_its_layers() -> None:
    block = ["stages.0.0.factor", "stages.0.0.first.layer.weight", "stages.0.0.layer.weight"]
    names = ["first.layer.weight", *block, "stages.0.1.layer.weight", "classifier.weight"]
    expected = ["first.layer.weight", *block[1:], block[0], "stages.0.1.layer.weight", "classifier.weight"]
    assert in_order(names) == expected
    many = ["stages.0.1.factor", "stages.0.1.layer.weight", "stages.0.10.factor", "stages.0.10.layer.weight"]
    assert in_order(many) == [many[1], many[0], many[3], many[2]]


def trained(bnexp: Bnexp, *words: str) -> RunRecord:
    assert bnexp("train", *WORDS, "hydra.run.dir=mine", *words).status == 0
    [run] = find_runs([Path("mine")])
    return run


def test_every_evaluation_keeps_its_checkpoint(bnexp: Bnexp) -> None:
    run = trained(bnexp, "eval.keep=true")
    paths = kept_checkpoints(run.directory)
    assert [int(load_tensors(path)["record.step"]) for path in paths] == [0, 20, 40]
    last, final = load_tensors(paths[-1]), load_tensors(run.directory / "checkpoint.safetensors")
    assert all(torch.equal(last[name], final[name]) for name in final)


def test_without_keeping_the_last_state_is_probed(bnexp: Bnexp) -> None:
    assert [probe.step for probe in probe_run(trained(bnexp))] == [40]


def test_the_end_of_a_cosine_has_a_landscape(bnexp: Bnexp) -> None:
    """Where the rate has come down to 0, the step is the first one's."""
    [probe] = probe_run(trained(bnexp, "optim.schedule=cosine"))
    assert max(probe.losses) > min(probe.losses)
    assert probe.smoothness > 0


def test_scales_and_shifts_of_conditions_are_no_layers(bnexp: Bnexp) -> None:
    run = trained(bnexp, "norm=conditional_batch", "dataset.conditions=[plain,inverted]")
    [probe] = probe_run(run)
    assert [*probe.shift] == ["hidden.0", "hidden.1", "classifier"]


# ---- against torch's own


def network(tensors: dict[str, Tensor], norm: str) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for number, (n, m) in enumerate(itertools.pairwise([64, 12, 10])):
        layers += [nn.Linear(n, m, bias=norm == "none"), nn.BatchNorm1d(m) if norm == "batch" else nn.Identity()]
        layers += [nn.ReLU()]
        for module, name in zip(layers[-3:-1], ("layer", "norm"), strict=True):
            prefix = f"parameters.hidden.{number}.{name}."
            own = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
            module.load_state_dict(own, strict=False)
    layers.append(nn.Linear(10, 10))
    layers[-1].load_state_dict({key: tensors[f"parameters.classifier.{key}"] for key in ("weight", "bias")})
    return nn.Sequential(*layers).double()


def loss_and_gradient(model: nn.Module, x: Tensor, labels: Tensor) -> tuple[float, list[Tensor]]:
    loss = F.cross_entropy(model(x), labels)
    return loss.item(), list(torch.autograd.grad(loss, list(model.parameters())))


@torch.no_grad()
def place(model: nn.Module, values: list[Tensor]) -> None:
    for parameter, value in zip(model.parameters(), values, strict=True):
        parameter.copy_(value)


def norm_of(tensors: list[Tensor]) -> float:
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())


def expected(run: RunRecord, norm: str) -> Probe:
    config = recorded(run.config)
    data = load_data(config.dataset)
    batch = data.train[Order(config.seed, len(data.train), 32).batch(40)]
    x, labels = batch.pixels.double() / 16, batch.labels
    model = network(load_tensors(run.directory / "checkpoint.safetensors"), norm)
    theta = [parameter.detach().clone() for parameter in model.parameters()]
    loss, g = loss_and_gradient(model, x, labels)
    losses, distances, ratios = [], [], []
    for factor in FACTORS:
        place(model, [t - factor * LR * d for t, d in zip(theta, g, strict=True)])
        other, gradient = loss_and_gradient(model, x, labels)
        losses.append(other)
        distances.append(norm_of([a - b for a, b in zip(gradient, g, strict=True)]))
        ratios.append(distances[-1] / (factor * LR * norm_of(g)))
    shift = {}
    weights = {"hidden.0": 0, "hidden.1": 3 if norm == "batch" else 2, "classifier": 6 if norm == "batch" else 4}
    for layer, place_of in weights.items():
        step = [t - LR * d if number < place_of else t for number, (t, d) in enumerate(zip(theta, g, strict=True))]
        place(model, step)
        shift[layer] = norm_of([g[place_of] - loss_and_gradient(model, x, labels)[1][place_of]])
    return Probe(40, loss, losses, distances, max(ratios), shift, {})


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_against_torch(bnexp: Bnexp, norm: str) -> None:
    run = trained(bnexp, f"norm={norm}")
    [found], other = probe_run(run), expected(run, norm)
    assert found.loss == pytest.approx(other.loss, rel=1e-4)
    assert found.losses == pytest.approx(other.losses, rel=1e-4)
    assert found.distances == pytest.approx(other.distances, rel=1e-3)
    assert found.smoothness == pytest.approx(other.smoothness, rel=1e-3)
    assert found.shift == pytest.approx(other.shift, rel=1e-2, abs=1e-5)
    assert found.shift["hidden.0"] == 0  # no layer comes before it
    assert found.cosine["hidden.0"] == pytest.approx(1)
    assert all(-1 <= value <= 1 + 1e-6 for value in found.cosine.values())


def test_probing_changes_nothing(bnexp: Bnexp) -> None:
    run = trained(bnexp, "norm=noisy_batch")
    before = (run.directory / "checkpoint.safetensors").read_bytes()
    first, second = probe_run(run), probe_run(run)
    assert first == second
    assert (run.directory / "checkpoint.safetensors").read_bytes() == before


# ---- the command


def test_command(bnexp: Bnexp) -> None:
    words = (*WORDS, "-m", "norm=none,batch", "seed=0,1", "eval.keep=true", "hydra.sweep.dir=sweep")
    assert bnexp("train", *words).status == 0
    outcome = bnexp("probe", "sweep")
    assert (outcome.status, outcome.err) == (0, "")
    assert "norm=none" in outcome.out
    with Path("sweep/probe.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["step"]) for row in rows[:4]] == [
        *(("norm=none,seed=0", step) for step in ("0", "20", "40")),
        ("norm=none,seed=1", "0"),
    ]
    assert len(rows) == 4 * 3
    assert all(float(row["lowest"]) <= float(row["highest"]) for row in rows)
    values = np.array(
        [[float(row[name]) for name in ("smoothness", "shift/hidden.1", "cosine/classifier")] for row in rows]
    )
    assert np.isfinite(values).all()
    assert Path("sweep/probe.png").stat().st_size > 10_000
    assert "effective smoothness" in Path("sweep/probe.svg").read_text()


@pytest.mark.usefixtures("no_figures")
def test_one_checkpoint_says_how_to_have_more(bnexp: Bnexp) -> None:
    trained(bnexp)
    assert "train with eval.keep=true" in bnexp("probe", "mine").out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "probe needs a directory"),
        (("nowhere",), "nowhere is not a directory"),
        (("empty",), "empty: no run has finished"),
        (("mine", "by=foo"), "by=foo is not a key that differs"),
    ],
)
def test_bad_input_is_one_line(bnexp: Bnexp, words: tuple[str, ...], complaint: str) -> None:
    trained(bnexp)
    Path("empty").mkdir()
    outcome = bnexp("probe", *words)
    assert outcome.status == 2
    assert complaint in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_a_damaged_checkpoint_is_named(bnexp: Bnexp) -> None:
    path = trained(bnexp).directory / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    outcome = bnexp("probe", "mine")
    assert outcome.status == 2
    assert outcome.err == f"bnexp: probe: {path} is missing or damaged\n"


@pytest.mark.usefixtures("no_figures")
def test_a_damaged_checkpoint_is_left_out_where_others_are_whole(bnexp: Bnexp) -> None:
    assert bnexp("train", "-m", *WORDS, "norm=none,batch", "hydra.sweep.dir=mine").status == 0
    path = Path("mine/norm=batch/checkpoint.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    outcome = bnexp("probe", "mine")
    assert outcome.status == 0
    assert outcome.err == f"bnexp: left out: probe: {path} is missing or damaged\n"
    assert {line.split(",")[0] for line in Path("mine/probe.csv").read_text().splitlines()[1:]} == {"norm=none"}
