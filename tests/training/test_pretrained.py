"""init_from, trainable and eval.recalibrate: runs that start from others, and population statistics."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from builders import make_stack
from conftest import Bnexp

from bnexp.data.batches import Batches, Order
from bnexp.data.load import load_data
from bnexp.runs.config import ArchConfig, DatasetConfig, NormConfig, OptimConfig, RunConfig
from bnexp.runs.tensors import load_tensors
from bnexp.training.engine import Stack
from bnexp.training.pretrained import read_source
from bnexp.training.recalibrate import recalibrated

CPU = torch.device("cpu")
TRAIN = ("train", "dataset=digits", "optim.lr=0.1", "steps=60")


@pytest.fixture(autouse=True)
def nothing_remembered() -> None:
    read_source.cache_clear()


MADE: list[Path] = []  # the run that the others start from


@pytest.fixture
def source(bnexp: Bnexp) -> Path:
    if not MADE:
        assert bnexp(*TRAIN, "norm=batch", "hydra.run.dir=made").status == 0
        MADE.append(Path("made").resolve())
    return Path(shutil.copytree(MADE[0], "source"))


def state(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_tensors(Path(folder) / "checkpoint.safetensors")


def by_name(folder: str | Path) -> dict[str, torch.Tensor]:
    """Parameters and buffers, whichever of the two a run has them as."""
    groups = ("parameters.", "buffers.")
    return {name.partition(".")[2]: tensor for name, tensor in state(folder).items() if name.startswith(groups)}


# ---- init_from


def test_a_run_starts_where_its_source_ended(bnexp: Bnexp, source: Path) -> None:
    """A learning rate that moves no weight leaves the start in the checkpoint; running averages are frozen."""
    words = ("norm=frozen_batch", "init_from=source", "optim.lr=1e-30", "hydra.run.dir=mine")
    outcome = bnexp(*TRAIN[:2], "steps=1", *words)
    assert outcome.status == 0
    assert "init_from=source: 17 tensors loaded, 0 skipped, 0 new" in outcome.out
    before, after = by_name(source), by_name("mine")
    for name in (name for name in before if name.rpartition(".")[2] not in ("epsilon", "momentum")):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-20)
    record = json.loads(Path("mine/run.json").read_text())
    assert len(record["start"]["loaded"]) == 17
    assert record["start"]["sha256"] == (source / "checkpoint.safetensors.sha256").read_text().split()[0]


def test_frozen_norms_stay_while_the_rest_learns(bnexp: Bnexp, source: Path) -> None:
    assert bnexp(*TRAIN, "norm=frozen_batch", "init_from=source", "hydra.run.dir=mine").status == 0
    before, after = by_name(source), by_name("mine")
    for name in before:
        if ".norm." in name and not name.endswith(("epsilon", "momentum")):
            assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["hidden.0.layer.weight"], after["hidden.0.layer.weight"])


def test_what_does_not_fit_is_named(bnexp: Bnexp, source: Path) -> None:
    """A network without norms has biases of its own and no use for γ, β and the averages."""
    outcome = bnexp(*TRAIN, "norm=none", "init_from=source", "hydra.run.dir=mine")
    assert outcome.status == 0
    assert "init_from=source: 5 tensors loaded, 12 skipped (" in outcome.out
    assert "3 new (hidden.0.layer.bias, hidden.1.layer.bias, hidden.2.layer.bias)" in outcome.out


def test_a_run_in_a_directory_of_its_own_name_is_a_source(bnexp: Bnexp) -> None:
    """Which has = and a comma in it, as Hydra writes overrides."""
    assert bnexp(*TRAIN, "norm=batch", "seed=1").status == 0
    [path] = Path("results/runs").glob("*/*norm=batch*,*")
    outcome = bnexp(*TRAIN, f"init_from={path}", "hydra.run.dir=mine")
    assert (outcome.status, outcome.err) == (0, "")
    assert json.loads(Path("mine/run.json").read_text())["config"]["init_from"] == str(path)


def test_a_path_from_the_home_directory(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert bnexp(*TRAIN, "hydra.run.dir=~/mine").status == 0
    assert [path.name for path in Path.cwd().iterdir()] == ["mine"]


def test_a_sweep_says_it_once(bnexp: Bnexp, source: Path) -> None:
    outcome = bnexp(*TRAIN, "-m", "init_from=source", "seed=0,1", "hydra.sweep.dir=sweep")
    assert outcome.status == 0
    assert outcome.out.count("init_from=source: 17 tensors loaded") == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("init_from=nowhere",), "init_from=nowhere is not allowed: it is not there"),
        (("init_from=source/run.json",), "not the directory of a run"),
        (("init_from=source", "arch=convnet", "arch.channels=[8]"), "a run of arch=mlp, while this one has convnet"),
        (("init_from=source", "arch.hidden=[100,90,100]"), "a run of arch.hidden=[100, 100, 100], while this one has"),
        (("trainable=norms", "norm=none"), "trainable=norms is not allowed: norm=none has nothing that is trained"),
        (("trainable=biases",), "trainable=biases is unknown: choose from all, norms"),
    ],
)
def test_bad_input_is_one_line(bnexp: Bnexp, source: Path, words: tuple[str, ...], complaint: str) -> None:
    outcome = bnexp(*TRAIN, *words, "hydra.run.dir=mine")
    assert outcome.status == 2
    assert complaint in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not Path("mine").exists()


def test_a_run_that_is_not_over_is_no_source(bnexp: Bnexp, source: Path) -> None:
    summary = json.loads(Path("source/summary.json").read_text())
    Path("source/summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))
    outcome = bnexp(*TRAIN, "init_from=source", "hydra.run.dir=mine")
    assert outcome.status == 2
    assert "init_from=source is not allowed: a run that finished, while this one is interrupted" in outcome.err


@pytest.mark.parametrize("damage", ["flipped", "without checkpoint"])
def test_a_damaged_source_is_refused(bnexp: Bnexp, source: Path, damage: str) -> None:
    path = source / "checkpoint.safetensors"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    outcome = bnexp(*TRAIN, "init_from=source", "hydra.run.dir=mine")
    assert outcome.status == 2
    assert outcome.err.startswith("bnexp: init_from=source is not allowed: ")
    assert len(outcome.err.splitlines()) == 1
    assert not Path("mine").exists()


# ---- trainable


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.extra)])
def test_norms_alone_are_trained(bnexp: Bnexp, source: Path, compiled: bool) -> None:
    words = ("init_from=source", "trainable=norms", f"compile={compiled}", "hydra.run.dir=mine")
    assert bnexp(*TRAIN, *words).status == 0
    before, after = by_name(source), by_name("mine")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".norm." in name and not name.endswith(("epsilon", "momentum"))}
    trained = {name for name in state("mine") if name.startswith("parameters.")}
    assert trained == {f"parameters.hidden.{layer}.norm.{name}" for layer in range(3) for name in ("weight", "bias")}


# ---- noise


def noisy_stack(seeds: list[int], steps: int) -> Stack:
    config = DatasetConfig("digits", validation=200)
    configs = [
        RunConfig(dataset=config, norm=NormConfig("noisy_batch"), seed=seed, compile=False, batch_size=32, device="cpu")
        for seed in seeds
    ]
    stack, batches = make_stack(configs, load_data(config), CPU), Batches(seeds, 1237, 32, False, CPU)
    for step in range(steps):
        stack.prepare(step)
        stack.step(batches.batch(step))
    return stack


def test_noise_follows_from_seed_and_step() -> None:
    alone, beside = noisy_stack([1], 5), noisy_stack([0, 1], 5)
    first, second = alone.members[0].flat(), beside.members[1].flat()
    assert all(torch.equal(first[name], second[name]) for name in first)
    name = "hidden.0.norm.shift"
    shifts = [noisy_stack([1], steps).members[0].buffers[name] for steps in (1, 2)]
    assert not torch.equal(*shifts)
    assert not torch.equal(beside.members[0].buffers[name], beside.members[1].buffers[name])
    assert not torch.equal(alone.members[0].buffers[name], alone.members[0].buffers["hidden.1.norm.shift"])


# ---- eval.recalibrate


def recalibrated_stack(norm: NormConfig, arch: ArchConfig, batch_size: int) -> Stack:
    config = RunConfig(
        dataset=DatasetConfig("digits", validation=200, limit=256),
        norm=norm,
        arch=arch,
        optim=OptimConfig(lr=0.1),
        compile=False,
        batch_size=batch_size,
        device="cpu",
    )
    data = load_data(config.dataset)
    stack, batches = make_stack([config], data, CPU), Batches([0], len(data.train), batch_size, False, CPU)
    for step in range(10):
        stack.step(batches.batch(step))
    return stack


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("name", ["batch", "batch_scratch"])
def test_recalibrated_statistics_are_those_of_the_training_set(name: str, unbiased: bool) -> None:
    """Of the first norm, whose input depends on no other statistics: mean and variance over all 256 images."""
    stack = recalibrated_stack(NormConfig(name, unbiased=unbiased, momentum=0.01), ArchConfig(hidden=[20, 10]), 32)
    before = {key: tensor.clone() for key, tensor in stack.members[0].flat().items()}
    found = recalibrated(stack, 0)
    assert found is not None
    weight = stack.members[0].parameters["hidden.0.layer.weight"]
    x = (stack.data.train.pixels.float() / 16).flatten(1) @ weight.T
    torch.testing.assert_close(found["hidden.0.norm.running_mean"], x.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found["hidden.0.norm.running_var"], x.var(0, correction=0), rtol=1e-4, atol=1e-6)
    assert all(torch.equal(tensor, before[key]) for key, tensor in stack.members[0].flat().items())
    assert torch.equal(found["hidden.0.norm.momentum"], before["buffers.hidden.0.norm.momentum"])


def test_recalibration_is_without_noise() -> None:
    """As of batch normalization: without its noise the network is the same."""
    arch = ArchConfig(hidden=[20, 10])
    noisy, plain = (recalibrated_stack(NormConfig(name), arch, 32) for name in ("noisy_batch", "batch"))
    noisy.prepare(3)
    found, expected = recalibrated(noisy, 0), recalibrated(plain, 0)
    assert found is not None
    assert expected is not None
    for statistic in ("running_mean", "running_var"):
        assert torch.equal(found[f"hidden.1.norm.norm.{statistic}"], expected[f"hidden.1.norm.{statistic}"])


def test_of_images_too() -> None:
    """A later norm, a batch at a time in the run's own order, against torch's cumulative average (momentum=None)."""
    arch = ArchConfig("convnet", channels=[4], dense=12)
    stack = recalibrated_stack(NormConfig("batch"), arch, 64)
    found, member, train = recalibrated(stack, 0), stack.members[0], stack.data.train
    assert found is not None
    first, second = (torch.nn.BatchNorm2d(4, momentum=None), torch.nn.BatchNorm1d(12, momentum=None))
    first.load_state_dict({k: member.parameters[f"convolutions.0.norm.{k}"] for k in ("weight", "bias")}, strict=False)
    order = Order(0, len(train), 64)
    for number in range(4):
        x = train.pixels[order.batch(number)].float() / 16
        x = torch.nn.functional.conv2d(x, member.parameters["convolutions.0.layer.weight"], padding=1)
        x = torch.nn.functional.max_pool2d(torch.relu(first(x)), 2).flatten(1)
        second(x @ member.parameters["dense.layer.weight"].T)
    for name, norm in (("convolutions.0.norm", first), ("dense.norm", second)):
        torch.testing.assert_close(found[f"{name}.running_mean"], norm.running_mean, rtol=1e-4, atol=1e-5)
        assert bool((found[f"{name}.running_var"] > 0.9 * norm.running_var).all())  # and the variance of the means


def test_recalibration_beside_the_running_averages(bnexp: Bnexp) -> None:
    """Averages that hold on to their start are of no use; the statistics of the training set are."""
    words = ("norm=batch", "norm.momentum=0.01", "steps=40", "hydra.run.dir=mine")
    outcome = bnexp(*TRAIN[:3], *words, "eval.recalibrate=true")
    assert outcome.status == 0
    summary = json.loads(Path("mine/summary.json").read_text())
    assert summary["test_recalibrated"]["accuracy"] > summary["test"]["accuracy"] + 0.1
    assert f"{summary['test_recalibrated']['accuracy']:.1%} recalibrated" in outcome.out
    with Path("mine/metrics.csv").open(newline="") as file:
        rows = {row["split"]: float(row["accuracy"]) for row in csv.DictReader(file) if row["accuracy"]}
    assert rows["test_recalibrated"] == pytest.approx(summary["test_recalibrated"]["accuracy"])


def test_without_running_averages_there_is_nothing_to_recalibrate(bnexp: Bnexp) -> None:
    assert bnexp(*TRAIN, "norm=layer", "eval.recalibrate=true", "hydra.run.dir=mine").status == 0
    assert "test_recalibrated" not in json.loads(Path("mine/summary.json").read_text())
