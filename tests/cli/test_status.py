"""bnexp status: the progress of a sweep, read from its directory alone."""

import re
import threading
import time
from pathlib import Path

import pytest
from conftest import Bnexp

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
    outcome = bnexp("status", "s")
    assert outcome.out.splitlines()[-1] == "running: 1 of 4 runs, 1 finished, 1 interrupted, 1 waiting"


def test_watch_ends_with_the_sweep(bnexp: Bnexp) -> None:
    assert bnexp(*SWEEP, "hydra.sweep.dir=s").status == 0
    summary = Path("s/norm=none,seed=1/summary.json")
    text = summary.read_text()
    summary.unlink()

    def finish() -> None:
        time.sleep(1)
        summary.write_text(text)

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
        ((), "status needs a directory: bnexp status results/sweeps/…"),
        (("nowhere",), "nowhere is not a directory: status takes directories, --watch"),
        ((".",), ". holds neither a run nor a sweep"),
        ((".", "--wach"), "--wach is not allowed: status takes directories, --watch"),
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
