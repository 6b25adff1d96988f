"""bnexp.api: what it returns is what the directories and the command line have."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Bnexp

from bnexp.api import ConfigError, Runs, compare_runs, load_model, load_runs, train
from bnexp.data.load import load_data
from bnexp.sweeps.run import SweepError

SWEEP = ("train", "-m", "dataset=digits", "norm=none,batch", "seed=0,1,2", "steps=60", "eval.first_every=20")
SWEEP += ("compile=false", "device=cpu", "optim.lr=0.2")
RUN = ["dataset=digits", "arch.hidden=[8]", "steps=40", "eval.first_every=20", "device=cpu", "compile=false"]


@pytest.fixture
def runs(bnexp: Bnexp) -> Runs:
    assert bnexp(*SWEEP, "hydra.sweep.dir=s").status == 0
    return load_runs("s")


def test_runs(runs: Runs) -> None:
    assert [run.directory.name for run in runs][:2] == ["norm=none,seed=0", "norm=none,seed=1"]
    assert [(run.config["norm"], run.config["optim.lr"], run.seed) for run in runs][-1] == ("batch", 0.2, 2)
    assert {run.status for run in runs} == {"finished"}
    assert [evaluation.step for evaluation in runs[0].curve] == [0, 20, 40, 60]
    assert runs[0].curve[-1].accuracy == runs[0].summary["validation"]["final"]


def test_a_table_of_all_evaluations(runs: Runs) -> None:
    frame = runs.to_frame()
    assert list(frame.columns) == ["directory", "seed", "norm", "step", "seconds", "loss", "accuracy"]
    assert len(frame) == 6 * 4
    last = frame[frame.step == 60].groupby("norm").accuracy.mean()
    ends = {run.directory.name: run.summary["validation"]["final"] for run in runs}
    assert last["batch"] == pytest.approx(np.mean([end for name, end in ends.items() if "batch" in name]))


def test_a_table_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"pip install 'bnexp\[pandas\]'"):
        Runs().to_frame()


def test_the_comparison_is_that_of_the_report(bnexp: Bnexp, runs: Runs) -> None:
    assert bnexp("report", "s").status == 0
    arms = json.loads(Path("s/compare.json").read_text())["arms"]
    control, batch = compare_runs(runs)
    assert (control.arm, control.control, batch.n) == ("norm=none", True, 3)
    assert batch.difference is not None
    assert batch.difference.mean == arms[1]["difference"]["mean"]
    with pytest.raises(ConfigError, match="by=act is not a key that differs"):
        compare_runs(runs, by="act")


def test_a_network_has_the_accuracy_that_was_recorded(runs: Runs) -> None:
    for run in (runs[0], runs[-1]):
        model, test = load_model(run.directory), load_data(run.record.located().dataset).test
        with torch.no_grad():
            predicted = model(run.preprocess(test.pixels)).argmax(1)
        assert float((predicted == test.labels).double().mean()) == run.summary["test"]["accuracy"]
        assert not model.training


@pytest.mark.parametrize("norm", ["weight", "group", "batch_renorm"])
def test_networks_of_other_norms(bnexp: Bnexp, norm: str) -> None:
    run = train([*RUN, f"norm={norm}", "hydra.run.dir=r"])
    test = load_data(run.record.located().dataset).test
    with torch.no_grad():
        predicted = load_model("r")(run.preprocess(test.pixels)).argmax(1)
    assert float((predicted == test.labels).double().mean()) == run.summary["test"]["accuracy"]


def test_a_network_of_a_condition(bnexp: Bnexp) -> None:
    conditions = "dataset.conditions=[plain,inverted]"
    run = train([*RUN, "norm=conditional_batch", conditions, "optim.lr=0.2", "hydra.run.dir=r"])
    test = load_data(run.record.located().dataset).test
    right = 0
    for number, condition in enumerate(("plain", "inverted")):
        part = test[test.condition == number]
        with torch.no_grad():
            predicted = load_model("r", condition=condition)(run.preprocess(part.pixels)).argmax(1)
        right += int((predicted == part.labels).sum())
    assert right / len(test) == run.summary["test"]["accuracy"]
    with pytest.raises(ConfigError, match="condition=edges is unknown: choose from plain, inverted"):
        load_model("r", condition="edges")


def test_a_network_in_the_midst_of_training(bnexp: Bnexp) -> None:
    run = train([*RUN, "eval.keep=true", "hydra.run.dir=r"])
    start, end = load_model("r", step=0), load_model("r", step=40)
    assert not torch.equal(next(start.parameters()), next(end.parameters()))
    assert torch.equal(next(end.parameters()), next(load_model("r").parameters()))
    with pytest.raises(ConfigError, match=r"checkpoint-000000030.safetensors is missing or damaged"):
        load_model(run.directory, step=30)


def test_training_is_that_of_the_command(bnexp: Bnexp) -> None:
    run = train([*RUN, "hydra.run.dir=mine"])
    assert bnexp("train", *RUN, "hydra.run.dir=other").status == 0
    assert (run.directory / "metrics.csv").read_bytes() == Path("other/metrics.csv").read_bytes()
    assert train([*RUN, "hydra.run.dir=mine"]).record.record == run.record.record, "it is finished"


def test_the_scale_of_pixels_is_recorded(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    run = train([*RUN, "dataset.standardize=true", "hydra.run.dir=r"])
    data = load_data(run.record.located().dataset)
    monkeypatch.setattr("bnexp.api.load_data", None)
    assert torch.equal(run.preprocess(data.test.pixels), data.scaled(data.test.pixels))
    assert run.preprocess(data.test.pixels[0]).shape == (1, 1, 8, 8)


def test_what_is_refused(bnexp: Bnexp) -> None:
    with pytest.raises(ConfigError, match="nowhere holds no run"):
        load_runs("nowhere")
    with pytest.raises(ConfigError, match="no directory holds no run"):
        load_runs()
    with pytest.raises(ConfigError, match="norm=bathc is unknown, did you mean norm=batch"):
        train(["norm=bathc"])
    with pytest.raises(ConfigError, match="a sweep is not a run"):
        train(["-m", *RUN])
    with pytest.raises(ConfigError, match="none is finished"):
        compare_runs([])
    with pytest.raises(ConfigError, match=r"nowhere/checkpoint.safetensors is missing"):
        load_model("nowhere")
    run = train([*RUN, "hydra.run.dir=r"])
    with pytest.raises(ConfigError, match=r"images of \(2, 1, 9, 9\), torch.uint8 are not allowed"):
        run.preprocess(torch.zeros(2, 1, 9, 9, dtype=torch.uint8))
    with pytest.raises(ConfigError, match=r"torch.float32 are not allowed"):
        run.preprocess(torch.zeros(2, 1, 8, 8))


def test_a_run_that_fails(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no step today")

    monkeypatch.setattr("bnexp.training.engine.Stack.update", fails)
    with pytest.raises(SweepError, match="RuntimeError: no step today"):
        train([*RUN, "hydra.run.dir=r"])
    [run] = load_runs("r")
    assert run.status == "failed"


def test_its_import_is_quiet() -> None:
    done = subprocess.run([sys.executable, "-c", "import bnexp.api"], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
