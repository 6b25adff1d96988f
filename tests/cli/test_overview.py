"""bnexp status of a folder, and bnexp clean: what is there, and what is removed."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
from conftest import Bnexp

from bnexp.runs.lock import Lock

SWEEP = ("train", "-m", "dataset=digits", "norm=none,batch", "seed=0,1", "steps=20", "compile=false", "device=cpu")
RUN = ("train", "dataset=digits", "steps=20", "compile=false", "device=cpu")


MADE: list[Path] = []  # what each test has a copy of


@pytest.fixture
def results(bnexp: Bnexp) -> Path:
    """A sweep with a failed, a waiting, an interrupted and a finished run, and a run by itself."""
    if not MADE:
        assert bnexp(*SWEEP, "hydra.sweep.dir=made/sweeps/mine", "eval.keep=true").status == 0
        assert bnexp(*RUN, "hydra.run.dir=made/runs/one").status == 0
        MADE.append(Path("made").resolve())
    sweep = Path(shutil.copytree(MADE[0], "results"), "sweeps/mine")
    (sweep / "norm=none,seed=0/summary.json").write_text('{"status": "failed", "error": "no [memory] left"}')
    (sweep / "norm=none,seed=1/summary.json").unlink()
    shutil.rmtree(sweep / "norm=batch,seed=0")
    return Path("results")


def states(bnexp: Bnexp, *words: str) -> dict[str, str]:
    return {Path(run["directory"]).name: run["state"] for run in json.loads(bnexp("status", *words, "--json").out)}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- status


def test_all_that_is_below_a_folder(bnexp: Bnexp, results: Path) -> None:
    outcome = bnexp("status")
    assert outcome.status == 0
    assert re.search(r"sweeps/mine +1 failed, 1 interrupted, 1 waiting, 1 finished +1 of 4 +20 ", outcome.out)
    assert re.search(r"runs/one +finished +1 +20 +\d+\.\d% ", outcome.out)
    assert "results/sweeps/mine/norm=none,seed=0: failed: no [memory] left" in outcome.out
    assert outcome.out.splitlines()[-1].startswith("5 runs: 1 failed, 1 interrupted, 1 waiting, 2 finished; ")
    assert bnexp("status", "results").out.splitlines()[3:5] == outcome.out.splitlines()[3:5]
    names = {"norm=none,seed=0", "norm=none,seed=1", "norm=batch,seed=0", "norm=batch,seed=1"}
    found = states(bnexp)
    assert found == dict.fromkeys(names, "") | {"one": "finished"} | {
        "norm=none,seed=0": "failed",
        "norm=none,seed=1": "interrupted",
        "norm=batch,seed=0": "waiting",
        "norm=batch,seed=1": "finished",
    }
    assert states(bnexp, "results/runs/one") == {"one": "finished"}


def test_a_run_that_a_process_trains(bnexp: Bnexp, results: Path) -> None:
    with Lock(results / "sweeps/mine/norm=none,seed=1"):
        assert states(bnexp)["norm=none,seed=1"] == "running"
        assert f"norm=none,seed=1: running by process {os.getpid()}" in bnexp("status").out
    assert states(bnexp)["norm=none,seed=1"] == "interrupted"


def test_damaged_records_are_shown(bnexp: Bnexp, results: Path) -> None:
    (results / "runs/one/run.json").write_text("{")
    assert states(bnexp)["one"] == "damaged"
    (results / "sweeps/mine/sweep.json").write_text("{")
    assert states(bnexp)["norm=batch,seed=1"] == "finished"


@pytest.mark.parametrize("folder", ["nothing", "empty"])
def test_a_folder_without_runs(bnexp: Bnexp, folder: str) -> None:
    Path("empty").mkdir()
    outcome = bnexp("status", folder)
    assert (outcome.status, len(outcome.err.splitlines())) == (2, 1)
    assert folder in outcome.err


# ---- clean


def test_what_would_be_removed_is_shown_first(bnexp: Bnexp, results: Path) -> None:
    before = files(results)
    for flag in ("--failed", "--checkpoints", "--older-than=0h"):
        outcome = bnexp("clean", "results", flag)
        assert outcome.status == 0
        assert "would be removed; --yes removes them" in outcome.out
    assert files(results) == before


def test_failed_runs_are_removed(bnexp: Bnexp, results: Path) -> None:
    assert bnexp("clean", "results", "--failed", "--yes").out.splitlines()[0] == "results/sweeps/mine/norm=none,seed=0"
    assert not (results / "sweeps/mine/norm=none,seed=0").exists()
    assert states(bnexp)["norm=none,seed=0"] == "waiting"
    assert bnexp("clean", "results", "--failed", "--yes").out == "results: nothing to remove\n"
    assert bnexp("resume", "results/sweeps/mine").status == 0
    assert set(states(bnexp).values()) == {"finished"}


def test_checkpoints_of_ended_runs_are_removed(bnexp: Bnexp, results: Path) -> None:
    """An interrupted run keeps the state that it is resumed from, and results stay."""
    before = files(results)
    assert bnexp("clean", "results", "--checkpoints", "--yes").status == 0
    gone = before.keys() - files(results).keys()
    assert gone
    assert all("checkpoint" in Path(name).name for name in gone)
    assert not [name for name in gone if "norm=none,seed=1" in name]
    assert not [name for name in files(results) if "checkpoint" in name and "norm=none,seed=1" not in name]
    assert bnexp("report", "results/runs/one").status == 0


def test_old_runs_are_removed_and_other_files_stay(bnexp: Bnexp, results: Path) -> None:
    (results / "runs/one/notes.txt").write_text("mine")
    old = time.time() - 3 * 86_400
    for path in results.rglob("*"):
        os.utime(path, (old, old))
    (results / "sweeps/mine/norm=batch,seed=1/summary.json").touch()
    assert bnexp("clean", "results", "--older-than", "4d").out == "results: nothing to remove\n"
    with Lock(results / "sweeps/mine/norm=none,seed=1"):  # running
        os.utime(results / "sweeps/mine/norm=none,seed=1/.lock", (old, old))
        assert bnexp("clean", "results", "--older-than", "2d", "--yes").status == 0
    assert list(files(results / "runs")) == ["results/runs/one/.lock", "results/runs/one/notes.txt"]
    left = {name for name, state in states(bnexp).items() if state != "waiting"}
    assert left == {"norm=batch,seed=1", "norm=none,seed=1"}


def test_a_sweep_that_is_trained_is_left_alone(bnexp: Bnexp, results: Path) -> None:
    """Its failed run may be tried again."""
    sweep = results / "sweeps/mine"
    with Lock(sweep):
        before = files(results)
        outcome = bnexp("clean", str(sweep), "--failed", "--yes")
        assert (outcome.status, outcome.err) == (2, f"bnexp: {sweep} is in use: its runs are being trained\n")
        assert bnexp("clean", "results", "--failed", "--yes").out == "results: nothing to remove\n"
        assert files(results) == before


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "clean needs what to remove"),
        (("results",), "clean needs what to remove"),
        (("results", "--older-than", "soon"), "--older-than soon is not allowed: a number of hours, days or weeks"),
        (("results", "--older-than"), "--older-than is not allowed"),
        (("--failed",), "clean needs a directory"),
        (("nowhere", "--failed"), "nowhere is not a directory"),
        (("results", "--failed", "--all"), "--all is not allowed: clean takes directories"),
        (("empty", "--failed", "--yes"), "empty holds no run"),
    ],
)
def test_bad_input_removes_nothing(bnexp: Bnexp, results: Path, words: tuple[str, ...], complaint: str) -> None:
    Path("empty").mkdir()
    Path("empty/file.txt").write_text("mine")
    before = files(Path())
    outcome = bnexp("clean", *words)
    assert (outcome.status, len(outcome.err.splitlines())) == (2, 1)
    assert complaint in outcome.err
    assert files(Path()) == before
