"""bnexp status: the progress of a sweep, read from its directory alone."""

import json
import re
import shutil
import threading
import time
from pathlib import Path

import fake_slurm
import pytest
from conftest import Bnexp

from bnexp.runs.lock import Lock
from bnexp.sweeps import slurm

SWEEP = ("train", "-m", "dataset=digits", "norm=none,batch", "seed=0,1", "steps=20", "compile=false", "device=cpu")


def test_a_finished_sweep(bnexp: Bnexp) -> None:
    assert bnexp(*SWEEP, "hydra.sweep.dir=s").status == 0
    outcome = bnexp("status", "s")
    assert outcome.status == 0
    assert re.search(r"norm=batch +2 of 2 ", outcome.out)
    assert outcome.out.splitlines()[-1] == "finished: 4 of 4 runs"


def test_runs_that_wait_train_or_were_interrupted(bnexp: Bnexp) -> None:
    assert bnexp(*SWEEP, "hydra.sweep.dir=s").status == 0
    for path in Path("s/norm=none,seed=0").iterdir():
        if path.is_file():
            path.unlink()
    Path("s/norm=none,seed=1/summary.json").unlink()
    Path("s/norm=batch,seed=0/summary.json").write_text('{"status": "interrupted", "steps": 20}')
    assert bnexp("status", "s").out.splitlines()[-1] == "interrupted: 2 of 4 runs, 1 finished, 1 waiting"
    assert bnexp("status", "s", "--watch").out.splitlines()[-1] == "interrupted: 2 of 4 runs, 1 finished, 1 waiting"
    with Lock(Path("s")):  # as the process that trains them
        outcome = bnexp("status", "s")
    assert outcome.out.splitlines()[-1] == "running: 1 of 4 runs, 1 finished, 1 interrupted, 1 waiting"


def test_a_sweep_that_waits_in_a_queue(bnexp: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an executor.setup, which no record holds. On a machine without Slurm its jobs may still wait."""
    monkeypatch.setattr(slurm, "ASK_EVERY", 0.2)
    state = fake_slurm.install(tmp_path / "fake", monkeypatch)
    (state / "nothing starts").touch()
    words = (*SWEEP, "executor=slurm", "executor.detach=true", "executor.setup='# nothing'", "hydra.sweep.dir=s")
    assert bnexp(*words).status == 0
    assert bnexp("status", "s").out.splitlines()[-1] == "waiting: 4 of 4 runs"
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        assert bnexp("status", "s").out.splitlines()[-1] == "waiting: 4 of 4 runs"
    slurm.run("scancel", "1")
    assert bnexp("status", "s").out.splitlines()[-1] == "interrupted: 4 of 4 runs waiting"


def test_runs_with_names_of_their_own(bnexp: Bnexp) -> None:
    """They are found in the sweep's record, before they have begun."""
    assert bnexp(*SWEEP, "hydra.sweep.dir=s", "hydra.sweep.subdir='${hydra:job.num}'").status == 0
    shutil.rmtree("s/3")
    assert bnexp("status", "s").out.splitlines()[-1] == "interrupted: 3 of 4 runs finished, 1 waiting"
    outcome = bnexp("resume", "s")
    assert outcome.out.splitlines()[-1] == (
        "s is finished: 4 runs (3 finished before, 1 started); compare them by: bnexp report s"
    )
    assert sorted(path.name for path in Path("s").iterdir() if path.is_dir()) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("folder", ["../elsewhere", "/elsewhere", "a/../../elsewhere"])
def test_a_folder_outside_of_the_sweep_is_refused(bnexp: Bnexp, folder: str) -> None:
    assert bnexp(*SWEEP, "hydra.sweep.dir=s").status == 0
    record = Path("s/sweep.json")
    content = json.loads(record.read_text())
    content["jobs"][0]["folder"] = folder
    record.write_text(json.dumps(content))
    for command in ("status", "resume"):
        outcome = bnexp(command, "s")
        assert (outcome.status, outcome.err) == (
            2,
            f"bnexp: s/sweep.json cannot be read: its folder {folder} is not in s\n",
        )


def test_watch_ends_with_the_sweep(bnexp: Bnexp) -> None:
    assert bnexp(*SWEEP, "hydra.sweep.dir=s").status == 0
    summary = Path("s/norm=none,seed=1/summary.json")
    text = summary.read_text()
    summary.unlink()

    def finish() -> None:
        time.sleep(1)
        summary.write_text(text)

    with Lock(Path("s")):
        thread = threading.Thread(target=finish)
        thread.start()
        outcome = bnexp("status", "s", "--watch")
        thread.join()
    assert outcome.out.splitlines()[-1] == "finished: 4 of 4 runs"
    assert "norm=none seed=1: test accuracy" in outcome.out


def test_a_single_run(bnexp: Bnexp) -> None:
    assert bnexp("train", *SWEEP[2:3], "steps=20", "device=cpu", "hydra.run.dir=r").status == 0
    assert bnexp("status", "r").out.splitlines()[-1] == "finished: 1 of 1 run"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "results is not a directory: status takes directories, --watch, --json"),
        (("nowhere",), "nowhere is not a directory: status takes directories, --watch, --json"),
        ((".",), ". holds no run"),
        ((".", "--wach"), "--wach is not allowed: status takes directories, --watch, --json"),
    ],
)
def test_what_is_refused(bnexp: Bnexp, words: tuple[str, ...], line: str) -> None:
    outcome = bnexp("status", *words)
    assert (outcome.status, outcome.err) == (2, f"bnexp: {line}\n")


def test_lines_of_a_log_begin_with_the_time(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnexp.runs.console.TIME", "%Y-%m-%d %H:%M:%S ")
    outcome = bnexp(*SWEEP, "hydra.sweep.dir=s")
    lines = outcome.out.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    assert lines[-1].endswith(" finished: 4 of 4 runs; compare them by: bnexp report s")
