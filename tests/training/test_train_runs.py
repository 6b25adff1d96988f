"""A run from its start to its directory: what is there, that it repeats to the byte, and how it ends."""

import csv
import functools
import json
import os
import signal
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from children import await_that, end_of, kill, start_child
from conftest import Bnexp
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import bnexp.training.loop as training
from bnexp.runs.config import ConfigError, DatasetConfig, RunConfig
from bnexp.runs.directory import SCHEMA, Launch, config_digest, create_run
from bnexp.runs.record import find_runs
from bnexp.runs.tensors import load_tensors
from bnexp.training import member
from bnexp.training import recorder as logs

DATA = Path(__file__).parents[2] / "data"
TRAIN = ("train", "dataset=digits", "steps=120")
LAYERS = [f"hidden.{layer}/p{p}" for layer in range(3) for p in (15, 50, 85)]


def trained(bnexp: Bnexp, folder: str, *words: str) -> Path:
    outcome = bnexp(*TRAIN, f"hydra.run.dir={folder}", *words)
    assert (outcome.status, outcome.err) == (0, "")
    return Path(folder)


def rows(folder: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_directory_is_whole(bnexp: Bnexp) -> None:
    folder = trained(bnexp, "mine")
    names = {path.name for path in folder.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    assert names - events == {
        ".hydra",
        ".lock",
        "bnexp.log",
        "run.json",
        "metrics.csv",
        "timing.csv",
        "checkpoint.safetensors",
        "checkpoint.safetensors.sha256",
        "summary.json",
    }
    assert {path.name for path in (folder / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}


def test_run_json(bnexp: Bnexp) -> None:
    record = read(trained(bnexp, "mine", "seed=3") / "run.json")
    assert record["schema"] == SCHEMA == 2
    assert record["overrides"] == ["dataset=digits", "steps=120", "seed=3"]
    assert record["config"]["seed"] == 3
    assert record["config"].keys() == RunConfig().as_dict().keys()
    assert record["packages"]["torch"] == version("torch")
    assert record["packages"].keys() >= {"bnexp", "torch", "torchvision", "numpy", "hydra-core", "tensorboard"}
    assert len(record["dataset"]["sha256"]) == 64
    assert record["dataset"]["train"] == 1237
    assert (record["device"], record["threads"], record["compiled"]) == ("cpu", 1, False)
    assert record["notes"] == ["no bias where the norm follows"]
    assert record["code"].keys() == {"commit", "dirty"}


def test_notes_are_empty_without_a_norm(bnexp: Bnexp) -> None:
    assert read(trained(bnexp, "mine", "norm=none") / "run.json")["notes"] == []


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ((), [0, 50, 100, 120]),
        (("steps=100",), [0, 50, 100]),
        (("steps=1",), [0, 1]),
        (("steps=350", "eval.first_until=100", "eval.every=100"), [0, 50, 100, 200, 300, 350]),
    ],
)
def test_metrics(bnexp: Bnexp, words: tuple[str, ...], steps: list[int]) -> None:
    found = rows(trained(bnexp, "mine", *words))
    assert list(found[0]) == ["step", "split", "loss", "accuracy", *LAYERS]  # and so no clock
    assert [int(row["step"]) for row in found if row["split"] == "validation"] == steps
    assert [int(row["step"]) for row in found if row["split"] == "train"] == steps[1:]
    assert (found[-1]["split"], int(found[-1]["step"])) == ("test", steps[-1])
    assert sum(row["split"] == "test" for row in found) == 1


def test_summary_agrees_with_metrics(bnexp: Bnexp) -> None:
    folder = trained(bnexp, "mine", "optim.lr=0.1")
    summary, found = read(folder / "summary.json"), rows(folder)
    accuracy = {int(row["step"]): float(row["accuracy"]) for row in found if row["split"] == "validation"}
    assert summary["status"] == "finished"
    assert summary["steps"] == 120
    assert summary["validation"]["final"] == pytest.approx(accuracy[120])
    assert summary["validation"]["best"] == pytest.approx(max(accuracy.values()))
    assert summary["test"]["accuracy"] == pytest.approx(float(found[-1]["accuracy"]))
    for target, step in summary["steps_to"].items():
        assert step == next((s for s, value in accuracy.items() if value >= int(target) / 100), None)
    assert summary["steps_to"]["80"] is not None
    assert [int(row["step"]) for row in rows(folder, "timing.csv")] == list(accuracy)


# ---- the same bytes


def result_bytes(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "metrics.csv").read_bytes(), (folder / "checkpoint.safetensors").read_bytes()


def test_equal_seeds_give_equal_bytes_and_others_do_not(bnexp: Bnexp) -> None:
    first, second, other = (
        result_bytes(trained(bnexp, name, f"seed={seed}")) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == second
    assert first[0] != other[0]
    assert first[1] != other[1]


def test_arms_start_alike(bnexp: Bnexp) -> None:
    """A learning rate that moves no weight leaves the start in the checkpoint. Of every norm: test_seeds_init.py."""
    still = ("steps=1", "optim.lr=1e-30", "arch.bias=true")
    control = load_tensors(trained(bnexp, "control", "norm=none", *still) / "checkpoint.safetensors")
    arm = load_tensors(trained(bnexp, "arm", "norm=batch", *still) / "checkpoint.safetensors")
    shared = [name for name in control if name.startswith("parameters.")]
    assert len(shared) == 8
    for name in shared:
        torch.testing.assert_close(control[name], arm[name], rtol=0, atol=1e-20)  # biases start at 0
    assert control["parameters.classifier.weight"].std() > 0.04


# ---- checkpoint


def test_checkpoint_is_complete(bnexp: Bnexp) -> None:
    folder = trained(bnexp, "mine", "optim=adam")
    state = load_tensors(folder / "checkpoint.safetensors")
    assert int(state["record.step"]) == 120
    assert {"buffers.hidden.0.norm.running_mean", "optimizer.first.classifier.weight"} <= set(state)
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


# ---- how a run ends


def test_divergence(bnexp: Bnexp) -> None:
    folder = trained(bnexp, "mine", "norm=none", "optim.lr=1e30")
    summary = read(folder / "summary.json")
    assert summary["status"] == "diverged"
    assert 1 <= summary["diverged_at"] <= 5
    assert 0 <= summary["test"]["accuracy"] <= 1
    assert rows(folder)[-1]["split"] == "test"


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, status: int) -> None:
    monkeypatch.chdir(tmp_path)
    pid = start_child(("train", "dataset=digits", "steps=1000000", "compile=false", "hydra.run.dir=mine"))
    folder = tmp_path / "mine"
    table = folder / "metrics.csv"
    await_that(lambda: table.exists() and len(table.read_text().splitlines()) > 4, pid)
    kill(pid, signum)
    assert end_of(pid) == status
    assert "Traceback" not in Path("said").read_text()
    summary = read(folder / "summary.json")
    assert summary["status"] == "interrupted"
    assert 50 <= summary["steps"] < 1000000
    assert all(row["split"] in ("validation", "train") for row in rows(folder))
    assert int(load_tensors(folder / "checkpoint.safetensors")["record.step"]) == summary["steps"]


def test_a_terminal_that_closes_interrupts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pid = start_child((*TRAIN[:-1], "steps=1000000", "hydra.run.dir=mine"))
    await_that(lambda: Path("mine/metrics.csv").exists() and Path("mine/metrics.csv").read_text().count("\n") > 2, pid)
    kill(pid, signal.SIGHUP)
    assert end_of(pid) == 128 + signal.SIGHUP
    assert read(Path("mine/summary.json"))["status"] == "interrupted"
    assert [*Path("mine").glob("resume-*.safetensors")]


def test_two_starts_in_a_second_have_directories_of_their_own(bnexp: Bnexp, tmp_path: Path) -> None:
    for _ in range(2):
        assert bnexp("train", "dataset=digits", "steps=1").status == 0
    assert len(find_runs([tmp_path])) == 2


def test_a_directory_holds_one_run(tmp_path: Path) -> None:
    launch, config = Launch(tmp_path / "mine", []), RunConfig(dataset=DatasetConfig("digits", validation=200))
    create_run(launch, config, {"device": "cpu", "threads": 1, "notes": []})
    before = (tmp_path / "mine" / "run.json").read_bytes()
    with pytest.raises(ConfigError, match="holds another run already"):
        member.create_or_reopen_run(replace(config, seed=1), launch, 1)
    assert (tmp_path / "mine" / "run.json").read_bytes() == before
    assert json.loads(before)["config_sha256"] == config_digest(config)


@pytest.mark.parametrize("group", ["dataset", "norm", "optim", "arch"])
def test_a_run_that_is_older_than_a_key_is_still_the_same_run(bnexp: Bnexp, group: str) -> None:
    """Its record has no value of the key, which then has its default."""
    sweep = (*TRAIN, "-m", "seed=0,1", "hydra.sweep.dir=s")
    assert bnexp(*sweep).status == 0
    for path in Path("s").glob("*/run.json"):
        record = json.loads(path.read_text())
        keys = RunConfig().as_dict()[group].keys() - {"name", "validation", "lr"}
        record["config"][group] = {key: v for key, v in record["config"][group].items() if key not in keys}
        path.write_text(json.dumps(record))
    outcome = bnexp(*sweep)
    assert outcome.status == 0
    assert "no run remains" in outcome.out


@pytest.mark.usefixtures("no_figures")
def test_a_failed_run_does_not_stop_its_sweep(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    train = training.train

    def failing(members: list[training.Member], *rest: Any) -> list[dict[str, Any]]:
        if members[0].config.seed == 1:
            raise RuntimeError("the sky fell")
        return train(members, *rest)

    monkeypatch.setattr(training, "train", failing)
    outcome = bnexp(*TRAIN, "-m", "seed=0,1,2", "hydra.sweep.dir=sweep")
    assert outcome.status == 1
    assert "1 of 3 runs failed" in outcome.err
    assert "seed=1" in outcome.err
    assert "the sky fell" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    states = find_runs([Path("sweep")])
    assert [run.summary["status"] for run in states] == ["finished", "failed", "finished"]
    assert "the sky fell" in states[1].summary["error"]
    outcome = bnexp("compare", *TRAIN[1:], "norm=none,batch", "seed=0,1", "hydra.sweep.dir=compared")
    assert outcome.status == 1, outcome
    assert "2 of 4 runs failed" in outcome.err
    assert [arm["n"] for arm in read(Path("compared/compare.json"))["arms"]] == [1, 1], "the others are compared"


def test_a_directory_whose_name_is_not_utf8(bnexp: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra's record has it, which libyaml cannot write."""
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    place.mkdir()
    monkeypatch.chdir(place)
    outcome = bnexp(*TRAIN, "steps=2", "hydra.run.dir=mine")
    assert (outcome.status, outcome.err) == (0, "")
    assert 'caf\\uDCE9"' in Path("mine/.hydra/hydra.yaml").read_text()


def test_output_to_a_file_has_no_escape_codes(bnexp: Bnexp) -> None:
    outcomes = [bnexp(*TRAIN, "steps=1"), bnexp("train", "norm=foo"), bnexp("data", "status")]
    assert all(outcome.out + outcome.err for outcome in outcomes)
    assert not [outcome for outcome in outcomes if "\x1b" in outcome.out + outcome.err]


# ---- loggers


class JsonLines(logs.Logger):
    """Another logger, in one file: an object a line."""

    def __init__(self, directory: Path) -> None:
        self.file = (directory / "log.jsonl").open("w", encoding="utf-8")

    def log(self, step: int, kind: str, values: logs.Values) -> None:
        self.file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")

    def close(self) -> None:
        self.file.close()


def test_another_logger_gets_every_row(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [logs.TensorBoardLogger, JsonLines]
    monkeypatch.setattr("bnexp.training.member.Recorder", functools.partial(logs.Recorder, others=others))
    assert bnexp("train", "dataset=digits", "steps=20", "eval.first_every=10", "hydra.run.dir=r").status == 0
    lines = [json.loads(line) for line in Path("r/log.jsonl").read_text().splitlines()]
    rows = [line for line in lines if line.pop("kind") != "speed"]
    with open("r/metrics.csv", newline="", encoding="utf-8") as file:
        table = [{k: float(v) for k, v in row.items() if v and k != "split"} for row in csv.DictReader(file)]
    assert rows == table
    assert len(lines) > len(rows)


# ---- TensorBoard


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def test_tensorboard_holds_the_metrics(bnexp: Bnexp) -> None:
    folder = trained(bnexp, "mine")
    board = events(folder)
    tags = {"accuracy/validation", "accuracy/test", "loss/train", "loss/validation", "loss/test"}
    tags |= {"speed/steps_per_second", *(f"activations/{layer}" for layer in LAYERS)}
    assert set(board.Tags()["scalars"]) == tags
    for tag in tags - {"speed/steps_per_second"}:
        kind, _, rest = tag.partition("/")
        split, column = ("validation", rest) if kind == "activations" else (rest, kind)
        expected = [(int(row["step"]), float(row[column])) for row in rows(folder) if row["split"] == split]
        found = [(event.step, event.value) for event in board.Scalars(tag)]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6)


def test_tensorboard_has_session_records_alone(bnexp: Bnexp) -> None:
    board = events(trained(bnexp, "mine"))
    assert set(board.PluginTagToContent("hparams")) == {"_hparams_/session_start_info", "_hparams_/session_end_info"}


@pytest.mark.parametrize("records", [1, 50])
def test_an_event_file_that_cannot_be_written_is_named(tmp_path: Path, records: int) -> None:
    board = logs.TensorBoardLogger(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "away")

    def write() -> None:
        for step in range(records):  # TensorBoard's writer is a thread, which may fail before `sync` or in it
            board.log(step, "validation", {"accuracy": 0.5})
        board.sync()

    with pytest.raises(OSError, match="No such file or directory") as caught:
        write()
    assert Path(caught.value.filename) == board.path


# ---- the published effect


@pytest.mark.skipif(not (DATA / "MNIST" / "raw").is_dir(), reason="data/MNIST/raw is absent")
def test_batch_normalization_halves_the_steps_to_90_percent(bnexp: Bnexp) -> None:
    words = ("train", f"dataset.root={DATA}", "dataset.validation=1000", "act=relu", "optim.lr=0.01", "seed=0")
    assert bnexp(*words, "norm=batch", "steps=600", "hydra.run.dir=batch").status == 0
    batch = read(Path("batch/summary.json"))["steps_to"]["90"]
    assert batch is not None
    assert bnexp(*words, "norm=none", f"steps={2 * batch}", "hydra.run.dir=none").status == 0
    assert read(Path("none/summary.json"))["steps_to"]["90"] is None
