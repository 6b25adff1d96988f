"""Data-parallel training: two processes of torchrun against one process on the joined batch."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from children import end_of, start
from conftest import Bnexp, closed_port

from bnexp.cli.main import run
from bnexp.runs import distributed
from bnexp.runs.record import find_runs
from bnexp.runs.tensors import load_tensors

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
WORDS = ("dataset=digits", "steps=10", "optim.lr=0.1", "threads=1")
# smooth all over: where a maximum or a ReLU changes sides, rounding grows to 0.004 within ten steps on some processors
IMAGES = ("arch=lenet", "arch.channels=[4]", "arch.hidden=[12]", "act=tanh")
PAIRS = {  # directory → what two processes run, what one does
    "mlp": (("norm=sync_batch",), ("norm=batch", "compile=false")),
    "lenet": (("norm=sync_batch", *IMAGES), ("norm=batch", *IMAGES)),
    "layer": (("norm=layer",), ("norm=layer", "compile=false")),
    "apart": (("norm=batch",), ("norm=batch", "compile=false")),
}


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Runs of two processes, and what those said."""
    folder, port = tmp_path_factory.mktemp("parallel"), closed_port()
    commands = [["train", *WORDS, *two, f"hydra.run.dir={name}"] for name, (two, _) in PAIRS.items()]
    with contextlib.chdir(folder):
        pids = [start(lambda: max(map(run, commands)), as_rank(rank, port)) for rank in range(2)]
        assert [end_of(pid) for pid in pids] == [0, 0], Path("said").read_text()
    return folder, (folder / "said").read_text()


def as_rank(rank: int, port: int) -> Callable[[], None]:
    """As torchrun starts it."""
    variables = {"TORCHELASTIC_RUN_ID": "x", "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return lambda: os.environ.update({name: str(value) for name, value in variables.items()})


def largest_difference(one: Path, two: Path) -> float:
    """Of all parameters and running averages."""
    first, second = (load_tensors(folder / "checkpoint.safetensors") for folder in (one, two))
    names = [name for name in first if name.startswith(("parameters.", "buffers."))]
    assert set(names) <= set(second)
    return max(float((first[name] - second[name]).abs().max()) for name in names)


@pytest.mark.parametrize("name", PAIRS)
def test_two_processes_equal_one_on_the_joined_batch(bnexp: Bnexp, shared: tuple[Path, str], name: str) -> None:
    """With sync_batch, and where there are no statistics of the batch; batch norm takes those of its own share."""
    assert bnexp("train", *WORDS, *PAIRS[name][1], "hydra.run.dir=one").status == 0
    difference = largest_difference(Path("one"), shared[0] / name)
    if name == "apart":
        assert difference > 1e-4
    else:
        assert difference <= 1e-6


def test_one_process_writes_and_speaks(shared: tuple[Path, str]) -> None:
    folder, said = shared
    runs = find_runs([folder])
    assert [run.record["processes"] for run in runs] == [2] * len(PAIRS)
    assert [run.summary["status"] for run in runs] == ["finished"] * len(PAIRS)
    assert len([line for line in said.splitlines() if "test accuracy" in line]) == len(PAIRS)
    with (folder / "mlp" / "metrics.csv").open(newline="") as file:
        assert sum(row["split"] == "test" for row in csv.DictReader(file)) == 1


@pytest.mark.extra
def test_interruption(tmp_path: Path) -> None:
    words = ["train", "dataset=digits", "steps=1000000", "norm=sync_batch", "hydra.run.dir=mine"]
    process = subprocess.Popen(
        [*TORCHRUN, "-m", "bnexp", *words],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    metrics = tmp_path / "mine" / "metrics.csv"
    try:
        for _ in range(600):
            if metrics.exists() and len(metrics.read_text().splitlines()) > 4:
                break
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches every process of the terminal
        process.communicate(timeout=40)
    finally:
        process.kill()
    [run] = find_runs([tmp_path])
    assert run.summary["status"] == "interrupted"
    assert run.summary["steps"] > 0
    assert int(load_tensors(run.directory / "checkpoint.safetensors")["record.step"]) == run.summary["steps"]


# ---- what is refused


@pytest.fixture
def under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """As rank 0 of three, alone."""
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "init_process_group", lambda: None)


@pytest.mark.usefixtures("under_torchrun")
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("train", "dataset=digits", "batch_size=64"), "batch_size=64 is not allowed: 3 processes share it equally"),
        (("train", "dataset=digits", "batch_size=60", "eval.recalibrate=true"), "eval.recalibrate=true is not allowed"),
        (("train", "dataset=digits", "batch_size=60", "compile=true"), "compile=true is not allowed: under torchrun"),
        (
            ("train", "dataset=digits", "batch_size=3"),
            "norm=batch with batch_size=3 is not allowed: hidden.0.norm is given 1",
        ),
        (("train", "-m", "dataset=digits", "seed=0"), "a sweep is not allowed under torchrun"),
        (("compare", "norm=none,batch"), "bnexp compare is not for torchrun"),
    ],
)
def test_bad_input_is_one_line(bnexp: Bnexp, words: tuple[str, ...], complaint: str) -> None:
    outcome = bnexp(*words)
    assert outcome.status == 2
    assert complaint in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_a_clusters_own_variables_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "2")
    assert (distributed.processes(), distributed.rank()) == (1, 0)


def test_shares_are_equal_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = torch.arange(12).view(2, 6)
    assert distributed.shard(batch) is not None
    parts = []
    for rank in range(3):
        for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": str(rank), "WORLD_SIZE": "3"}.items():
            monkeypatch.setenv(name, value)
        parts.append(distributed.shard(batch))
    assert torch.equal(torch.cat(parts, 1), batch)
    assert {part.shape for part in parts} == {(2, 2)}
