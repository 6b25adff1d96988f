"""`bnexp bench`: what it measures, leaves out, refuses and writes. No test looks at how fast anything is."""

import json
import re
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import IMAGES_ONLY, make_stack
from conftest import Bnexp
from torch import Tensor

import bnexp.training.engine
from bnexp.cli.main import run
from bnexp.compare.throughput import interval_description, interval_rank, make_forward, spread
from bnexp.compare.throughput_plan import CONTROL, take_options, with_norms
from bnexp.data.batches import Batch, Batches
from bnexp.data.load import load_data
from bnexp.models.norm_registry import NORMS
from bnexp.runs.config import ActConfig, ArchConfig, DatasetConfig, NormConfig, RunConfig
from bnexp.runs.directory import PACKAGES
from bnexp.training.compiler import NO_COMPILER, has_compiler
from bnexp.training.engine import Stack

SMALL = ("dataset=digits", "arch.hidden=[8]", "batch_size=20", "seconds=0.001")
EAGER = (*SMALL, "modes=eager", "rounds=6")
needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler (g++ or clang++)")


def bench(*words: str) -> None:
    assert run(["bench", *words]) == 0


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "bench.json").read_text())
    return record


@pytest.fixture(scope="module")
def eager(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two panels of two norms and the control."""
    folder = tmp_path_factory.mktemp("bench") / "out"
    bench(*EAGER, "norm=batch,layer", "act=relu,sigmoid", f"out={folder}")
    return folder


def test_record_tells_the_circumstances(eager: Path) -> None:
    record = record_of(eager)
    assert record["command"].startswith("bnexp bench dataset=digits 'arch.hidden=[8]'")
    assert (record["rounds"], record["seconds"], record["threads"], record["device"]) == (6, 0.001, [1], "cpu")
    assert set(record["packages"]) == set(PACKAGES)
    assert {"machine", "cores", "python", "code", "created", "interval"} <= set(record)
    assert {"backend", "fullgraph", "dynamic", "cpu", "compiler"} == set(record["compile"])


def test_a_row_a_norm_in_each_panel(eager: Path) -> None:
    rows = record_of(eager)["rows"]
    for act in ("relu", "sigmoid"):
        found = [row for row in rows if row["config"]["act"]["name"] == act]
        assert [row["norm"] for row in found] == [CONTROL, "batch", "layer"]
        assert {row["panel"] for row in found} == {f"digits, mlp, {act}, batch 20, arch.hidden=[8]"}
    assert {(row["mode"], row["members"], row["threads"], row["compile_seconds"]) for row in rows} == {
        ("eager", 1, 1, 0)
    }


def test_ratios_are_those_of_the_rounds_and_name_their_mode(eager: Path) -> None:
    rows = record_of(eager)["rows"]
    controls = {(row["panel"], row["mode"]): row for row in rows if row["norm"] == CONTROL}
    for row in rows:
        control = controls[row["panel"], row["mode"]]
        if row is control:
            assert (row["ratio"], row["step_ratio"], row["forward_ratio"]) == (None, None, None)
            continue
        assert row["ratio"] == f"{row['norm']} / none, {row['mode']}"
        for ratio, rate in (("step_ratio", "steps_per_second"), ("forward_ratio", "forwards_per_second")):
            pairs = zip(row[rate]["rounds"], control[rate]["rounds"], strict=True)
            assert row[ratio]["rounds"] == [own / base for own, base in pairs]
            assert len(row[ratio]["rounds"]) == 6
            assert row[ratio]["median"] == statistics.median(row[ratio]["rounds"])
            assert (row[ratio]["low"], row[ratio]["high"]) == (min(row[ratio]["rounds"]), max(row[ratio]["rounds"]))


def test_tables_and_figures(eager: Path) -> None:
    text = (eager / "bench.md").read_text()
    assert len(re.findall("(?<!_)batch / none, eager: ", text)) == 4  # step and forward pass of two panels
    assert text.count("| none, eager | ") == text.count("| control |") == 4
    assert record_of(eager)["command"] in text.splitlines()[-3]
    assert text.splitlines()[-1].startswith("bnexp ")
    assert (eager / "bench.png").read_bytes().startswith(b"\x89PNG")
    drawing = (eager / "bench.svg").read_text()
    assert "digits, mlp, sigmoid, batch 20, arch.hidden=[8], 1 thread" in drawing
    assert "training steps/s" in drawing
    assert "forward passes/s" in drawing


@pytest.mark.usefixtures("no_figures")
def test_every_norm_that_fits(tmp_path: Path) -> None:
    bench(*SMALL, "modes=eager", "rounds=1", f"out={tmp_path}")
    fitting = [CONTROL, *(norm for norm in NORMS if norm != CONTROL and norm not in IMAGES_ONLY)]
    assert [row["norm"] for row in record_of(tmp_path)["rows"]] == fitting
    text = (tmp_path / "bench.md").read_text()
    assert "norm=instance is left out: norm=instance means nothing for arch=mlp" in text


@pytest.mark.usefixtures("no_figures")
def test_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench(*EAGER, "norm=batch", f"out={tmp_path / 'out'}")
    printed = capsys.readouterr().out
    assert printed.count("batch / none, eager: ") == 2
    assert "96.9% interval by order statistics" in printed
    assert str(tmp_path / "out" / "bench.png") in printed


# ---- modes


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without the C++ part of it, which takes seconds a graph."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(bnexp.training.engine, "_compiled", {})


@needs_compiler
def test_every_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record of it: test_stacking.py has the steps compiled, and one below the forward pass."""
    monkeypatch.setattr("bnexp.training.compiled.Compiled.compile", lambda compiled, _: compiled.function)
    monkeypatch.setattr("bnexp.training.engine.keep_in_place", lambda _: None)
    monkeypatch.setattr(bnexp.training.engine, "_compiled", {})
    drawn: list[Any] = []
    monkeypatch.setattr("bnexp.compare.throughput_report.rate_figure", lambda *arguments: drawn.append(arguments))
    bench(*SMALL, "norm=batch", "rounds=2", "stack=3", f"out={tmp_path}")
    record = record_of(tmp_path)
    modes = [("eager", 1), ("compiled", 1), ("stacked", 3)]
    assert [(row["mode"], row["members"]) for row in record["rows"] if row["norm"] == "batch"] == modes
    assert [(row["mode"], row["members"]) for row in record["rows"] if row["norm"] == CONTROL] == modes
    assert [row["ratio"] for row in record["rows"] if row["ratio"]] == [f"batch / none, {mode}" for mode, _ in modes]
    assert all((row["compile_seconds"] > 0) == (row["mode"] != "eager") for row in record["rows"])
    assert record["interval"].startswith("median of 2 rounds [lowest, highest]")
    assert "stacked, 3 runs as one" in str(drawn)


@pytest.mark.usefixtures("no_figures")
def test_stacked_is_left_out_where_nothing_stacks(tmp_path: Path) -> None:
    words = ("dataset=digits", "arch=convnet", "arch.channels=[4]", "arch.dense=8", "norm=batch", "threads=1")
    bench(*words, "batch_size=20", "seconds=0.001", "rounds=2", "modes=eager,stacked", f"out={tmp_path}")
    record = record_of(tmp_path)
    assert [row["mode"] for row in record["rows"]] == ["eager", "eager"]
    assert [(left["what"], left["why"]) for left in record["left_out"]] == [("stacked", "arch=convnet doesn't stack")]
    assert (tmp_path / "bench.md").read_text().count("| stacked | — | — |") == 2


@pytest.mark.usefixtures("no_figures")
def test_without_a_compiler_only_eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    bench(*SMALL, "norm=batch", "rounds=2", f"out={tmp_path}")
    record = record_of(tmp_path)
    assert {row["mode"] for row in record["rows"]} == {"eager"}
    assert [left["what"] for left in record["left_out"]] == ["compiled", "stacked"]
    assert {left["why"] for left in record["left_out"]} == {NO_COMPILER}
    assert record["compile"]["compiler"] is None


@pytest.mark.usefixtures("no_figures")
def test_every_norm_of_an_image_network(tmp_path: Path) -> None:
    words = ("dataset=digits", "arch=convnet", "arch.channels=[4]", "arch.dense=8", "threads=1")
    bench(*words, "batch_size=20", "seconds=0.001", "rounds=1", "modes=eager", f"out={tmp_path}")
    record = record_of(tmp_path)
    assert {row["norm"] for row in record["rows"]} == set(NORMS)
    assert record["left_out"] == []


# ---- the forward pass


def stack_of(norm: str, members: int, compiled: bool) -> tuple[Stack, Batch]:
    dataset = DatasetConfig("digits", validation=300)
    config = RunConfig(
        dataset, ArchConfig(hidden=[8]), ActConfig(), NormConfig(norm), batch_size=20, compile=compiled, device="cpu"
    )
    data, seeds = load_data(dataset), list(range(members))
    batches = Batches(seeds, len(data.train), config.batch_size, False, torch.device("cpu"))
    return make_stack([replace(config, seed=seed) for seed in seeds], data, torch.device("cpu")), batches.batch(0)


def changed(before: dict[str, Tensor], now: dict[str, Tensor]) -> set[str]:
    return {name.rpartition(".")[2] for name, tensor in now.items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_forward_pass_trains_nothing_but_keeps_running_averages(norm: str) -> None:
    stack, batch = stack_of(norm, 1, compiled=False)
    before = stack.members[0].map(torch.clone)
    make_forward(stack)(batch)
    assert changed(before.parameters, stack.members[0].parameters) == set()
    moved = changed(before.buffers, stack.members[0].buffers)
    assert moved == ({"running_mean", "running_var"} if norm == "batch" else set())
    stack.step(batch)
    assert "weight" in changed(before.parameters, stack.members[0].parameters)


@needs_compiler
@pytest.mark.usefixtures("traced_only")
def test_stacked_forward_pass_is_the_eager_one() -> None:
    """By the loss, and by the running averages that it leaves behind."""
    (eager, alone), (stacked, batch) = stack_of("batch", 1, compiled=False), stack_of("batch", 2, compiled=True)
    losses = make_forward(stacked)(batch)
    torch.testing.assert_close(losses[0], make_forward(eager)(alone))
    assert losses[0] != losses[1]
    for name, buffer in eager.members[0].buffers.items():
        torch.testing.assert_close(stacked.members[0].buffers[name], buffer)
        assert "running" not in name or not torch.equal(stacked.members[1].buffers[name], buffer)


# ---- intervals, by hand


@pytest.mark.parametrize(("n", "rank"), [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (12, 2), (20, 5)])
def test_interval_by_order_statistics(n: int, rank: int) -> None:
    """Ranks of the 95% interval of a median as tables of the sign test have them (k - 1 of Conover's table A3)."""
    assert interval_rank(n) == rank
    found = spread([float(value) for value in range(n)])
    assert (found.low, found.median, found.high) == (rank, (n - 1) / 2, n - 1 - rank)


def test_interval_is_named() -> None:
    assert interval_description(5) == "median of 5 rounds [lowest, highest]; an interval of 95% takes 6 rounds"
    assert (
        interval_description(9)
        == "median of 9 rounds [its 96.1% interval by order statistics: values 2 and 8 in order]"
    )


# ---- arguments


def test_norms_are_added_to_each_job_and_the_control_comes_first() -> None:
    assert with_norms([["act=relu", "norm=batch"], ["act=tanh", "norm=batch"]]) == [
        ["act=relu", "norm=none"],
        ["act=relu", "norm=batch"],
        ["act=tanh", "norm=none"],
        ["act=tanh", "norm=batch"],
    ]
    assert with_norms([["norm=layer"], ["norm=none"]]) == [["norm=none"], ["norm=layer"]]
    assert with_norms([[]])[0] == ["norm=none"]
    assert {override for [override] in with_norms([[]])} == {f"norm={norm}" for norm in NORMS}


def test_defaults() -> None:
    options, overrides = take_options([])
    assert (options.rounds, options.stack, options.modes, overrides) == (9, 8, ["eager", "compiled", "stacked"], [])
    assert options.out.parent == Path("results/bench")
    assert not options.norms_named


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("rounds=0", "rounds=0 is not allowed: a whole number from 1 to 1000"),
        ("rounds=7.5", "rounds=7.5 is not allowed: a whole number from 1 to 1000"),
        ("seconds=0", "seconds=0 is not allowed: a number above 0 and up to 60"),
        ("seconds=nan", "seconds=nan is not allowed: a number above 0 and up to 60"),
        ("seconds=soon", "seconds=soon is not allowed: a number above 0 and up to 60"),
        ("stack=1", "stack=1 is not allowed: a whole number from 2 to 1024"),
        ("modes=fast", "modes=fast is unknown: choose from eager, compiled, stacked"),
        ("modes=", "modes= is unknown: choose from eager, compiled, stacked"),
        ("modes=eager,", "modes= is unknown: choose from eager, compiled, stacked"),
        ("out=", "out= is not allowed: a directory"),
        ("compile=true", "compile=true is not allowed: choose modes= from eager, compiled, stacked"),
        ("norm=batch,instance", "norm=instance means nothing for arch=mlp: it needs images, as in arch=convnet"),
        ("norm=batch,batch", "norm=batch,batch has the same run more than once: "),
        ("batch_size=20,5000", "batch_size=5000 is not allowed: at most the "),
        ("arch=convnet arch.channels=[4] modes=stacked", "modes=stacked is not allowed: arch=convnet doesn't stack"),
    ],
)
def test_invalid_arguments(bnexp: Bnexp, words: str, line: str) -> None:
    outcome = bnexp("bench", "dataset=digits", *words.split())
    assert outcome.status == 2
    assert outcome.err.startswith(f"bnexp: {line}")
    assert outcome.err.count("\n") == 1
    assert not list(Path.cwd().iterdir())
