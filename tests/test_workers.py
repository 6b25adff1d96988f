"""Worker processes: stacks trained by them, their deaths, interruption; and what a person sees of it all."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from conftest import Bnexp
from rich.console import Console
from stand_ins import Fake, fake_train

from bnexp.config import DatasetConfig, RunConfig
from bnexp.progress import RunState, SweepDisplay, cells
from bnexp.running import Sweep
from bnexp.runs import Launch, create_run, find_runs
from bnexp.sweep import Job, StackOfJobs, SweepPlan
from bnexp.train import Interrupted
from bnexp.workers import Closed, Evaluated, Event, Opened, Pool, Progress, serve

CONFIG = RunConfig(dataset=DatasetConfig("digits", validation=200), steps=1000)


def make_jobs(number: int) -> StackOfJobs:
    """Two arms, one seed after the other."""
    words = [[f"norm={norm}", f"seed={seed}"] for seed in range(number) for norm in ("none", "batch")][:number]
    return [Job(i, words[i], words[i], replace(CONFIG, seed=i // 2)) for i in range(number)]


# ---- the pool, with stand-ins for training: a stack is a word and a number


def workers_left() -> list[str]:
    """Names of worker processes; joblib's linger beside them."""
    ours = ("ForkServerProcess", "SpawnProcess")
    return [child.name for child in multiprocessing.active_children() if child.name.startswith(ours)]


@pytest.mark.parametrize(("visible", "device", "seen"), [(None, 1, "1"), ("3,5", 1, "5"), ("GPU-a", 0, "GPU-a")])
def test_a_worker_sees_one_of_the_devices_that_its_parent_sees(
    visible: str | None, device: int, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible) if visible else monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    serve(theirs, fake_train, os.getcwd(), device)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def ignore(event: Event) -> None:
    pass


def never(stack: Any, how: str) -> list[Any]:
    raise AssertionError(f"{stack}: {how}")


def kind_of(stack: Fake) -> str:
    return stack[0]


def test_a_worker_prefers_a_stack_like_its_last() -> None:
    stacks = [("a", 1), ("b", 2), ("a", 3), ("c", 4), ("b", 5), ("a", 6)]
    results = Pool(fake_train, ignore, never, kind_of).run(stacks, 1, 0)
    assert results == [("a", 1), ("a", 3), ("a", 6), ("b", 2), ("b", 5), ("c", 4)]
    assert not workers_left()


def test_a_death_costs_one_stack_which_is_tried_as_told() -> None:
    deaths: dict[Fake, str] = {}

    def died(stack: Fake, how: str) -> list[Fake]:
        deaths[stack] = how
        return [("again", stack[1]), ("twice", stack[1])]

    heard: list[Event] = []
    stacks = [("killed", 1), ("exits", 2), *(("a", number) for number in range(3, 7))]
    results = Pool(fake_train, heard.append, died, kind_of).run(stacks, 2, 0)
    again = [(kind, number) for kind in ("again", "twice") for number in (1, 2)]
    assert sorted(results) == sorted([*stacks[2:], *again])
    assert deaths.keys() == {("killed", 1), ("exits", 2)}
    assert deaths["killed", 1] == "the worker process died (SIGKILL)"
    assert deaths["exits", 2] == "the worker process died (exit status 3)"
    pids = {event.step for event in heard if isinstance(event, Progress)}
    assert len(pids) in (3, 4)  # a worker that died idle for lack of stacks is not replaced
    assert os.getpid() not in pids
    assert not workers_left()


@pytest.mark.parametrize(
    ("signum", "kinds"), [(signal.SIGINT, ("stubborn", "endless")), (signal.SIGTERM, ("endless",))]
)
def test_interruption_ends_every_worker(
    signum: signal.Signals, kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnexp.workers.GRACE", 0.3)
    started: set[int] = set()

    def emit(event: Event) -> None:
        assert isinstance(event, Progress)
        if event.step == 0:
            started.update(event.jobs)
            if len(started) == len(kinds):
                os.kill(os.getpid(), signum)

    before = signal.getsignal(signum)
    with pytest.raises(Interrupted) as caught:
        Pool(fake_train, emit, never, kind_of).run([(kind, n) for n, kind in enumerate(kinds)], len(kinds), 0)
    assert caught.value.signum == signum
    assert signal.getsignal(signum) is before
    assert not workers_left()


def test_ctrl_c_is_heeded_while_a_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    start = BaseProcess.start

    def interrupted(process: BaseProcess) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        start(process)

    monkeypatch.setattr(BaseProcess, "start", interrupted)
    with pytest.raises(Interrupted):
        Pool(fake_train, ignore, never, kind_of).run([("a", 1)], 1, 0)
    assert not workers_left()


def test_workers_are_deaf_to_ctrl_c() -> None:
    heard: list[Event] = []
    Pool(fake_train, heard.append, never, kind_of).run([("interrupts itself", 1)], 1, 0)
    assert [event.step for event in heard if isinstance(event, Progress)][1:] == [0], "it lives"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


# ---- a sweep whose workers die


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Five runs that are open, trained as one stack."""
    monkeypatch.chdir(tmp_path)
    jobs = make_jobs(5)
    found = Sweep(cast(Any, None), SweepPlan([jobs], 1, 60, False))
    found.jobs = {job.number: job for job in jobs}
    found.display = SweepDisplay(jobs)
    for job in jobs:
        found.hear(Opened(job.number, open_run(job)))
    return found


def open_run(job: Job) -> Path:
    folder = Path("s", str(job.number))
    create_run(Launch(folder, job.overrides, job.number), job.config, {})
    return folder


def test_first_death_starts_the_runs_again_in_halves(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    [stack] = sweep.plan.stacks
    sweep.hear(Progress([0, 1, 2, 3, 4], 500))
    assert sweep.died(stack, "the worker process died (SIGKILL)") == [stack[:3], stack[3:]]
    assert "the worker process died (SIGKILL): starting 5 runs again as 2 stacks" in capsys.readouterr().out
    assert all(Path(f"s/{number}/run.json").exists() for number in range(5)), "each goes on in its directory"
    assert not sweep.returns
    assert sweep.display.line() == "0 of 5 runs done, 0 running"


def test_second_death_fails_the_runs_of_that_half_alone(sweep: Sweep) -> None:
    [stack] = sweep.plan.stacks
    first, second = sweep.died(stack, "the worker process died (SIGKILL)")
    for job in first[:2]:  # it dies before the third is opened
        sweep.hear(Opened(job.number, Path("s", str(job.number))))
    assert sweep.died(first, "the worker process died (exit status 3)") == []
    assert sweep.dead == dict.fromkeys(range(3), "the worker process died (exit status 3)")
    for number in range(3):
        summary = json.loads(Path(f"s/{number}/summary.json").read_text())
        assert summary == {"status": "failed", "error": "the worker process died (exit status 3)"}
        assert Path(f"s/{number}/run.json").exists()
    assert not Path("summary.json").exists()
    assert sweep.display.line() == "3 of 5 runs done, 0 running"
    assert [job.number for job in second] == [3, 4]
    with pytest.raises(RuntimeError, match=r"3 of 5 runs failed: norm=none seed=0 \(the worker process died"):
        sweep.raise_failures({})


def test_one_run_starts_again_alone(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    [stack] = sweep.plan.stacks
    assert sweep.died(stack[:1], "the worker process died (SIGKILL)") == [stack[:1]]
    assert "starting 1 run again as 1 stack" in capsys.readouterr().out


# ---- what is seen


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The display's clock, which moves only when it is told."""
    now = 100.0

    def advance(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("bnexp.progress.time", SimpleNamespace(monotonic=lambda: now))
    return advance


SUMMARY = {
    "status": "finished",
    "test": {"accuracy": 0.9},
    "steps_to": {"90": None},
    "steps_per_second": 100.0,
}


def rendered(display: SweepDisplay) -> list[list[str]]:
    """The table's rows, as words."""
    console = Console(record=True, width=120, file=open(os.devnull, "w"))  # noqa: SIM115 - as long as the console
    console.print(display.table())
    return [line.split() for line in console.export_text().splitlines()]


def test_display_follows_its_events(clock: Callable[[float], None]) -> None:
    display = SweepDisplay(make_jobs(4))
    assert display.line() == "0 of 4 runs done, 0 running"
    for number in range(4):
        display.hear(Opened(number, Path(str(number))))
    display.hear(Progress([0, 1, 2, 3], 1))
    clock(2)
    display.hear(Progress([0, 1, 2, 3], 200))
    assert display.line() == "0 of 4 runs done, 4 running, 400 steps/s, 8 s left"
    display.hear(Evaluated(0, 300, 0.5))
    display.hear(Evaluated(2, 200, 0.7))
    assert [display.step_of(number) for number in range(4)] == [300, 200, 200, 200]
    display.hear(Progress([0], 250))  # late news
    assert display.step_of(0) == 300
    assert ["norm=none", "0", "of", "2", "2", "0", "60.0%", "250", "6", "s"] in rendered(display)
    assert ["norm=batch", "0", "of", "2", "2", "0", "200", "8", "s"] in rendered(display)
    display.hear(Closed(0, Path("0"), SUMMARY | {"status": "diverged", "diverged_at": 300}))
    display.hear(Closed(2, Path("2"), SUMMARY))
    assert ["norm=none", "2", "of", "2", "0", "1", "60.0%", "250"] in rendered(display)
    assert display.line() == "2 of 4 runs done, 2 running, 450 steps/s, 4 s left"


def test_cells_of_an_arm_that_waits() -> None:
    assert cells([RunState(job) for job in make_jobs(3)]) == ["0 of 3", "0", "0", "", "", ""]


def test_restarted_runs_wait_from_the_beginning(clock: Callable[[float], None]) -> None:
    display = SweepDisplay(make_jobs(2))
    for number in range(2):
        display.hear(Opened(number, Path(str(number))))
    display.hear(Progress([0, 1], 100))
    clock(1)
    display.hear(Evaluated(0, 200, 0.5))
    display.restart([0])
    assert display.step_of(0) == 0
    assert display.line().startswith("0 of 2 runs done, 1 running")
    assert ["norm=none", "0", "of", "1", "0", "0"] in rendered(display)


def test_without_a_terminal_a_line_comes_every_ten_seconds(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with SweepDisplay(make_jobs(2)) as display:
        for _ in range(25):
            clock(1)
            display.hear(Progress([0, 1], 0))
        display.hear(Closed(1, Path("s/1"), SUMMARY))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "0 of 2 runs done, 0 running",
        "0 of 2 runs done, 0 running",
        "norm=batch seed=0: test accuracy 90.0%, 100 steps/s → s/1",
    ]


def test_brackets_in_a_title_are_no_markup() -> None:
    job = replace(make_jobs(1)[0], overrides=["arch.hidden=[8]"])
    assert any(row[:1] == ["arch.hidden=[8]"] for row in rendered(SweepDisplay([job])))


# ---- the command, its worker killed, then interrupted


def crew_of(parent: int) -> set[int]:
    """Worker processes of a process: forks of its server, or its own."""
    command = ["ps", "-A", "-ww", "-o", "ppid=,pid=,command="]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    words = [line.split(maxsplit=2) for line in lines.splitlines()]
    servers = {int(word[1]) for word in words if int(word[0]) == parent and "forkserver" in word[2]}
    spawned = {int(word[1]) for word in words if int(word[0]) == parent and "spawn_main" in word[2]}
    return spawned | {int(word[1]) for word in words if int(word[0]) in servers}


def alive(pid: int) -> bool:
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(found.strip()) and not found.strip().startswith("Z")


def wait_until(true: Callable[[], bool], process: subprocess.Popen[bytes], what: str) -> None:
    for _ in range(1200):
        if true():
            return
        assert process.poll() is None, what
        time.sleep(0.05)
    raise AssertionError(f"not within a minute: {what}")


@pytest.mark.skipif(shutil.which("ps") is None, reason="no ps to find the workers with")
def test_a_killed_worker_is_replaced_and_an_interrupted_sweep_closes_its_runs(tmp_path: Path) -> None:
    words = "train -m dataset=digits device=cpu steps=200000 compile=false seed=0,1,2 hydra.launcher.workers=2"
    command = [sys.executable, "-m", "bnexp.cli", *words.split(), "hydra.sweep.dir=s"]
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=stdout, stderr=stderr)
    try:
        wait_until(lambda: len(list(tmp_path.glob("s/*/metrics.csv"))) == 2, process, "two runs are open")
        crew = crew_of(process.pid)
        assert len(crew) == 2
        os.kill(min(crew), signal.SIGKILL)
        wait_until(
            lambda: "the worker process died (SIGKILL): starting 1 run" in out.read_text(), process, "a death is told"
        )
        wait_until(lambda: len(crew_of(process.pid) - crew) == 1, process, "a new worker has come")
        crew |= crew_of(process.pid)
        tables = lambda: [path.read_text() for path in tmp_path.glob("s/*/metrics.csv")]  # noqa: E731
        wait_until(lambda: sum(text.count("\n") > 1 for text in tables()) == 3, process, "the third run trains too")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert not [pid for pid in crew if alive(pid)]
    finally:
        process.kill()
    assert "interrupted: 0 of 3 runs done" in out.read_text()
    assert not err.read_text()
    found = find_runs([tmp_path])
    assert len(found) == 3
    assert {run.summary["status"] for run in found} <= {"interrupted", "failed"}


def test_a_sweep_in_this_process_is_interrupted_as_one_run_is(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    def hear(display: SweepDisplay, event: Event) -> None:
        if isinstance(event, Evaluated) and event.job == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(SweepDisplay, "hear", hear)
    outcome = bnexp("train", "-m", "dataset=digits", "device=cpu", "steps=60", "seed=0,1,2", "hydra.sweep.dir=s")
    assert (outcome.status, outcome.err) == (130, "")
    assert [(run.seed, run.summary["status"]) for run in find_runs([Path("s")])] == [
        (0, "finished"),
        (1, "interrupted"),
    ]


# ---- where the temporary directory has a long name, or an odd one


def folder_of(tmp_path: Path, kind: str) -> Path:
    """A temporary directory: over 100 characters, as Slurm's folders for jobs; 300; in other letters; not there."""
    places = {"long": ["job" * 40], "longer": ["x" * 150] * 2, "letters": ["временный каталог"], "missing": ["gone"]}
    place = tmp_path.joinpath(*places[kind])
    if kind != "missing":
        place.mkdir(parents=True)
    return place


@pytest.mark.parametrize(
    "kind", ["long", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("longer", "letters", "missing"))]
)
def test_workers_start_whatever_the_temporary_directory_is_called(bnexp: Bnexp, tmp_path: Path, kind: str) -> None:
    words = ["train", "-m", "dataset=digits", "device=cpu", "steps=20", "eval.first_every=10", "seed=0,1"]
    assert bnexp(*words, "hydra.sweep.dir=here").status == 0
    command = [sys.executable, "-m", "bnexp", *words, "hydra.launcher.workers=2", "hydra.sweep.dir=s"]
    environment = os.environ | {"TMPDIR": str(folder_of(tmp_path, kind))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for seed in (0, 1):
        for name in ("metrics.csv", "checkpoint.safetensors"):
            assert Path(f"s/seed={seed}", name).read_bytes() == Path(f"here/seed={seed}", name).read_bytes()
