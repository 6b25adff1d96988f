"""Executors: stacks trained by worker processes and in this one, lost workers, interruption; and what is seen of it."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import Bnexp
from rich.console import Console
from stand_ins import fake_train

from bnexp.runs.config import DatasetConfig, RunConfig
from bnexp.runs.directory import Launch, create_run, write_summary
from bnexp.runs.record import find_runs
from bnexp.sweeps.display import Display, RunState, cells
from bnexp.sweeps.executor import Ended, Executor, InlineExecutor
from bnexp.sweeps.executor_config import ExecutorConfig
from bnexp.sweeps.job import Failures, Job, StackOfJobs
from bnexp.sweeps.processes import ProcessExecutor, serve
from bnexp.sweeps.run import Sweep, SweepError, run_sweep
from bnexp.sweeps.stacks import SweepPlan
from bnexp.sweeps.train import train_stack
from bnexp.training.signals import Interrupted

CONFIG = RunConfig(dataset=DatasetConfig("digits", validation=200), steps=1000, device="cpu")
QUICK = replace(CONFIG, steps=20, compile=False, eval=replace(CONFIG.eval, first_every=10))


def make_jobs(number: int, config: RunConfig = CONFIG) -> StackOfJobs:
    """Two arms, one seed after the other."""
    words = [[f"norm={norm}", f"seed={seed}"] for seed in range(number) for norm in ("none", "batch")][:number]
    return [Job(i, words[i], words[i], replace(config, seed=i // 2), Path("s", str(i))) for i in range(number)]


# ---- worker processes, with stand-ins for training


def fake(kind: str, number: int) -> StackOfJobs:
    """A stack of one job that `fake_train` understands; kinds differ in what is compiled."""
    size = sum(map(ord, kind))
    return [Job(number, [kind], [kind], replace(CONFIG, batch_size=size))]


def workers_of(stacks: list[StackOfJobs], workers: int) -> ProcessExecutor:
    return ProcessExecutor(SweepPlan(stacks, ExecutorConfig(), Path(), workers), fake_train)


def until_all_ended(executor: Executor, stacks: list[StackOfJobs]) -> list[Ended]:
    found: list[Ended] = []
    for stack in stacks:
        executor.start(stack)
    try:
        while len(found) < len(stacks):
            found += executor.poll()
    finally:
        executor.cancel()
    return found


def workers_left() -> list[str]:
    """Names of worker processes."""
    ours = ("ForkServerProcess", "SpawnProcess")
    return [child.name for child in multiprocessing.active_children() if child.name.startswith(ours)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("visible", "device", "seen"), [(None, 1, "1"), ("3,5", 1, "5"), ("GPU-a", 0, "GPU-a")])
def test_a_worker_sees_one_of_the_devices_that_its_parent_sees(
    visible: str | None, device: int, seen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible) if visible else monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    serve(theirs, fake_train, os.getcwd(), device, {})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_a_worker_prefers_a_stack_of_its_last_kind() -> None:
    stacks = [fake(kind, number) for number, kind in enumerate("abacba")]
    ended = until_all_ended(workers_of(stacks, 1), stacks)
    assert [item.stack[0].number for item in ended] == [0, 2, 5, 1, 4, 3]
    assert len({text.text for item in ended for text in (item.failures or {}).values()}) == 1, "one process"
    assert not workers_left()


def test_a_lost_worker_costs_its_stack_alone_and_is_replaced() -> None:
    stacks = [fake("killed", 0), fake("exits", 1), *(fake("a", number) for number in range(2, 6))]
    ended = {item.stack[0].number: item for item in until_all_ended(workers_of(stacks, 2), stacks)}
    assert ended[0].lost == "the worker process was lost (SIGKILL)"
    assert ended[1].lost == "the worker process was lost (exit status 3)"
    assert all(ended[number].lost is None for number in range(2, 6))
    pids = {Path(f"began-{number}").read_text() for number in range(6)}
    assert len(pids) in (3, 4)  # one that is lost idle for lack of stacks is not replaced
    assert str(os.getpid()) not in pids
    assert not workers_left()


@contextmanager
def signal_once_begun(numbers: list[int], signum: signal.Signals) -> Iterator[None]:
    """Send this process a signal as soon as these stacks are being trained."""

    def watch() -> None:
        while not all(Path(f"began-{number}").exists() for number in numbers):
            time.sleep(0.01)
        os.kill(os.getpid(), signum)

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()


@pytest.mark.parametrize(
    ("signum", "kinds"), [(signal.SIGINT, ("stubborn", "endless")), (signal.SIGTERM, ("endless",))]
)
def test_interruption_ends_every_worker(
    signum: signal.Signals, kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnexp.sweeps.processes.GRACE", 0.3)
    stacks = [fake(kind, number) for number, kind in enumerate(kinds)]
    before = signal.getsignal(signum)
    with signal_once_begun(list(range(len(kinds))), signum), pytest.raises(Interrupted) as caught:
        Sweep(workers_of(stacks, len(kinds)), Display([])).train(stacks)
    assert caught.value.signum == signum
    assert signal.getsignal(signum) is before
    assert not workers_left()


def test_ctrl_c_is_heeded_while_a_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    start = BaseProcess.start

    def interrupted(process: BaseProcess) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        start(process)

    monkeypatch.setattr(BaseProcess, "start", interrupted)
    stacks = [fake("endless", 1)]
    with pytest.raises(Interrupted):
        Sweep(workers_of(stacks, 1), Display([])).train(stacks)
    assert not workers_left()


def test_ctrl_c_reaches_a_worker_through_its_parent_alone() -> None:
    [ended] = until_all_ended(workers_of([fake("interrupts itself", 1)], 1), [fake("interrupts itself", 1)])
    assert ended.lost is None, "it lives"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


# ---- a sweep whose workers are lost


@pytest.fixture
def sweep() -> Sweep:
    """Five runs that are open, trained as one stack."""
    jobs = make_jobs(5)
    for job in jobs:
        open_run(job)
    return Sweep(InlineExecutor(), Display(jobs))


def open_run(job: Job) -> None:
    create_run(Launch(job.directory, job.overrides, job.number), job.config, {})


def test_first_loss_starts_the_runs_again_in_halves(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    stack = make_jobs(5)
    assert sweep.halves(stack, "the worker process was lost (SIGKILL)") == [stack[:3], stack[3:]]
    assert "the worker process was lost (SIGKILL): starting 5 runs again as 2 stacks" in capsys.readouterr().out
    assert all(Path(f"s/{number}/run.json").exists() for number in range(5)), "each is resumed in its directory"
    assert not sweep.failures
    assert sweep.display.line() == "0 of 5 runs done, 0 running"


def test_second_loss_fails_the_runs_of_that_half_alone(sweep: Sweep) -> None:
    first, second = sweep.halves(make_jobs(5), "the worker process was lost (SIGKILL)")
    assert sweep.halves(first, "the worker process was lost (exit status 3)") == []
    assert {n: failure.text for n, failure in sweep.failures.items()} == dict.fromkeys(
        range(3), "the worker process was lost (exit status 3)"
    )
    for number in range(3):
        summary = json.loads(Path(f"s/{number}/summary.json").read_text())
        assert summary == {"status": "failed", "error": "the worker process was lost (exit status 3)"}
    assert not Path("summary.json").exists()
    assert [job.number for job in second] == [3, 4]


def test_one_run_starts_again_alone(sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    stack = make_jobs(5)[:1]
    assert sweep.halves(stack, "the worker process was lost (SIGKILL)") == [stack]
    assert "starting 1 run again as 1 stack" in capsys.readouterr().out


# ---- a third executor: threads of this process, as one would write for another cluster


class ThreadExecutor:
    """Trains each stack in a thread; the first try of every stack of more than one run is lost."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.running: list[tuple[StackOfJobs, Future[Failures]]] = []

    def start(self, stack: StackOfJobs) -> None:
        self.running.append((stack, self.pool.submit(self.train, stack)))

    def train(self, stack: StackOfJobs) -> Failures:
        if len(stack) > 1:
            raise OSError("the thread was lost")
        return train_stack(stack)

    def poll(self) -> list[Ended]:
        time.sleep(0.01)
        done = [(stack, future) for stack, future in self.running if future.done()]
        self.running = [pair for pair in self.running if pair not in done]
        errors = [(stack, future, future.exception()) for stack, future in done]
        return [Ended(s, lost=str(error)) if error else Ended(s, future.result()) for s, future, error in errors]

    def cancel(self) -> None:
        self.pool.shutdown(cancel_futures=True)


def test_an_executor_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    """It says which stacks ended; retries, progress and failures are the sweep's."""
    jobs = make_jobs(3, QUICK)
    jobs[2].directory.mkdir(parents=True)
    (jobs[2].directory / "metrics.csv").mkdir()
    stacks = [jobs[:2], jobs[2:]]
    with pytest.raises(SweepError, match=r"^1 of 3 runs failed: norm=none seed=1 \("):
        run_sweep(SweepPlan(stacks, ExecutorConfig(), Path()), ThreadExecutor())
    output = capsys.readouterr().out
    assert "the thread was lost: starting 2 runs again as 2 stacks" in output
    assert output.count("test accuracy") == 2
    assert [run.summary["status"] for run in find_runs([Path("s")])] == ["finished", "finished", "unfinished"]


# ---- what is seen


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The display's clock, which moves only when it is told."""
    now = 100.0

    def advance(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("bnexp.sweeps.display.time", SimpleNamespace(monotonic=lambda: now))
    return advance


SUMMARY = {
    "status": "finished",
    "test": {"accuracy": 0.9},
    "steps_to": {"90": None},
    "steps_per_second": 100.0,
}


def rendered(display: Display) -> list[list[str]]:
    """The table's rows, as words."""
    console = Console(record=True, width=120, file=open(os.devnull, "w"))  # noqa: SIM115 - as long as the console
    console.print(display.table())
    return [line.split() for line in console.export_text().splitlines()]


def evaluate(job: Job, step: int, accuracy: float) -> None:
    """A row of the run's metrics.csv."""
    with (job.directory / "metrics.csv").open("a") as file:
        file.write(f"{step},validation,0.5,{accuracy}\n{step},train,0.5,\n")


def test_display_reads_the_directories(clock: Callable[[float], None]) -> None:
    jobs = make_jobs(4)
    display = Display(jobs)
    assert display.line() == "0 of 4 runs done, 0 running"
    for job in jobs:
        open_run(job)
        evaluate(job, 0, 0.1)
    display.refresh()
    clock(2)
    for job in jobs:
        evaluate(job, 200, 0.5 + job.number / 10)
    display.refresh()
    assert display.line() == "0 of 4 runs done, 4 running, 400 steps/s, 8 s left"
    (jobs[0].directory / "metrics.csv").open("a").write("300,validation,0.5,0.")  # a row that is being written
    display.refresh()
    assert ["norm=none", "0", "of", "2", "2", "0", "60.0%", "200", "8", "s"] in rendered(display)
    assert ["norm=batch", "0", "of", "2", "2", "0", "70.0%", "200", "8", "s"] in rendered(display)
    write_summary(jobs[0].directory, SUMMARY | {"status": "diverged", "diverged_at": 300})
    write_summary(jobs[2].directory, SUMMARY)
    display.refresh()
    assert ["norm=none", "2", "of", "2", "0", "1", "60.0%", "200"] in rendered(display)
    assert display.line() == "2 of 4 runs done, 2 running, 400 steps/s, 4 s left"


def test_cells_of_an_arm_that_waits() -> None:
    assert cells([RunState(job) for job in make_jobs(3)]) == ["0 of 3", "0", "0", "", "", ""]


def test_runs_of_before_and_those_that_are_lost_wait(clock: Callable[[float], None]) -> None:
    jobs = make_jobs(2)
    open_run(jobs[0])
    evaluate(jobs[0], 100, 0.5)
    display = Display(jobs)
    display.refresh()
    assert display.line() == "0 of 2 runs done, 0 running", "it was interrupted before, and isn't resumed yet"
    for job in jobs:
        open_run(job)
        evaluate(job, 200, 0.5)
    display.refresh()
    assert display.line().startswith("0 of 2 runs done, 2 running")
    display.restart(jobs[:1])
    display.refresh()
    assert display.line().startswith("0 of 2 runs done, 1 running")
    assert ["norm=none", "0", "of", "1", "0", "0"] in rendered(display)


def test_a_run_that_ended_just_before_its_stack_was_lost_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    jobs = make_jobs(2)
    display = Display(jobs)
    for job in jobs:
        open_run(job)
    write_summary(jobs[0].directory, SUMMARY)
    display.restart(jobs)
    assert display.line() == "1 of 2 runs done, 0 running"
    assert "norm=none seed=0: test accuracy 90.0%" in capsys.readouterr().out


def test_without_a_terminal_a_line_comes_every_ten_seconds(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = make_jobs(2)
    display = Display(jobs)
    for _ in range(25):
        clock(1)
        display.refresh()
    open_run(jobs[1])
    write_summary(jobs[1].directory, SUMMARY)
    display.refresh()
    assert capsys.readouterr().out.splitlines() == [
        "0 of 2 runs done, 0 running",
        "0 of 2 runs done, 0 running",
        "norm=batch seed=0: test accuracy 90.0%, 100 steps/s → s/1",
    ]


def test_brackets_in_a_title_are_no_markup() -> None:
    job = replace(make_jobs(1)[0], own_overrides=["arch.hidden=[8]"])
    assert any(row[:1] == ["arch.hidden=[8]"] for row in rendered(Display([job, replace(job, number=1)])))


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
    words = "train -m dataset=digits device=cpu steps=200000 compile=false seed=0,1,2 executor.workers=2"
    command = [sys.executable, "-m", "bnexp", *words.split(), "hydra.sweep.dir=s"]
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=stdout, stderr=stderr)
    try:
        tables = lambda: [path.read_text() for path in tmp_path.glob("s/*/metrics.csv")]  # noqa: E731
        wait_until(lambda: sum(text.count("\n") > 1 for text in tables()) == 2, process, "two runs train")
        crew = crew_of(process.pid)
        assert len(crew) == 2
        os.kill(min(crew), signal.SIGKILL)
        wait_until(
            lambda: "the worker process was lost (SIGKILL): starting 1 run" in out.read_text(),
            process,
            "a death is told",
        )
        wait_until(lambda: len(crew_of(process.pid) - crew) == 1, process, "a new worker has come")
        crew |= crew_of(process.pid)
        wait_until(lambda: sum(text.count("\n") > 1 for text in tables()) == 3, process, "the third run trains too")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert not [pid for pid in crew if alive(pid)]
    finally:
        process.kill()
    assert "interrupted: 3 of 3 runs" in out.read_text()
    assert not err.read_text()
    found = find_runs([tmp_path])
    assert len(found) == 3
    assert {run.summary["status"] for run in found} <= {"interrupted", "failed"}


def test_a_sweep_in_this_process_is_interrupted_as_one_run_is(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    from bnexp.training import loop as train  # noqa: PLC0415

    evaluate = train.evaluate

    def interrupted(member: train.Member, *rest: object) -> None:
        evaluate(member, *rest)  # type: ignore[arg-type]
        if member.config.seed == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(train, "evaluate", interrupted)
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
    "kind", [pytest.param(kind, marks=pytest.mark.extra) for kind in ("long", "longer", "letters", "missing")]
)
def test_workers_start_whatever_the_temporary_directory_is_called(bnexp: Bnexp, tmp_path: Path, kind: str) -> None:
    words = ["train", "-m", "dataset=digits", "device=cpu", "steps=20", "eval.first_every=10", "seed=0,1"]
    assert bnexp(*words, "hydra.sweep.dir=here").status == 0
    command = [sys.executable, "-m", "bnexp", *words, "executor.workers=2", "hydra.sweep.dir=s"]
    environment = os.environ | {"TMPDIR": str(folder_of(tmp_path, kind))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for seed in (0, 1):
        for name in ("metrics.csv", "checkpoint.safetensors"):
            assert Path(f"s/seed={seed}", name).read_bytes() == Path(f"here/seed={seed}", name).read_bytes()
