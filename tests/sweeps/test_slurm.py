"""executor=slurm with a stand-in for Slurm's commands: what is submitted, what is refused, what a driver does with what
Slurm says. tests/cluster does the same to a real one, and worse.
"""

import threading
import time
from dataclasses import replace
from pathlib import Path

import fake_slurm
import pytest
from conftest import Bnexp

from bnexp.runs.config import DatasetConfig, RunConfig
from bnexp.sweeps import slurm
from bnexp.sweeps.executor_config import ExecutorConfig
from bnexp.sweeps.job import HydraRecord, Job
from bnexp.sweeps.slurm_task import (
    Progress,
    progress_path,
    read_digests,
    read_progress,
    read_task,
    train_task,
    write_tasks,
)
from bnexp.sweeps.stacks import SweepPlan

SWEEP = ("train", "-m", "dataset=digits", "norm=none,batch", "steps=40", "compile=false", "device=cpu")
SLURM = ("executor=slurm", "hydra.sweep.dir=s")


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(slurm, "ASK_EVERY", 0.2)
    monkeypatch.setattr(slurm, "GRACE", 0.5)
    return fake_slurm.install(tmp_path / "fake", monkeypatch)


@pytest.fixture
def config() -> RunConfig:
    return RunConfig(DatasetConfig("digits", validation=200), steps=1, device="cpu")


def jobs(config: RunConfig, folder: Path, number: int) -> list[Job]:
    return [Job(seed, [f"seed={seed}"], [], replace(config, seed=seed), folder / str(seed)) for seed in range(number)]


# ---- tasks


def test_a_task_comes_back_from_its_file(config: RunConfig, tmp_path: Path) -> None:
    record = HydraRecord({"seed": 0}, {"verbose": False})
    first, second, third = (
        replace(job, record=record, values={"seed": job.number}) for job in jobs(config, tmp_path, 3)
    )
    write_tasks(tmp_path / "1.jsonl", [[[first, second]], [[third]]], cores=3)
    [[job]], cores = read_task(tmp_path / "1.jsonl", 1)
    assert cores == 3
    assert (job.digest, job.directory, job.values, job.record) == (third.digest, third.directory, {"seed": 2}, record)
    assert list(read_digests(tmp_path / "1.jsonl")) == [[[first.digest, second.digest]], [[third.digest]]]
    assert (tmp_path / "1.jsonl").read_text().count('"verbose"') == 1, "what runs share is written once"


def test_a_task_goes_on_behind_what_has_ended(config: RunConfig, tmp_path: Path) -> None:
    task = [[job] for job in jobs(config, tmp_path, 3)]
    progress = progress_path(tmp_path, "a", 0)
    train_task(task[:1], progress)
    assert read_progress(progress) == Progress(1, {})
    began = (tmp_path / "0" / "run.json").stat().st_mtime_ns
    train_task(task, progress)
    assert read_progress(progress) == Progress(3, {})
    assert (tmp_path / "0" / "run.json").stat().st_mtime_ns == began
    assert all((tmp_path / name / "summary.json").exists() for name in "012")


@pytest.mark.parametrize(("runs_per_job", "sizes"), [(None, [3, 2, 1]), (1, [1] * 6), (4, [4, 2]), (100, [6])])
def test_stacks_are_packed_into_tasks(
    config: RunConfig, tmp_path: Path, runs_per_job: int | None, sizes: list[int]
) -> None:
    """By default 20 minutes of work: here runs of 5, 7, 8, 10, 10 and 30 minutes."""
    each = jobs(config, tmp_path, 6)
    minutes = dict(enumerate([5, 7, 8, 10, 10, 30]))
    plan = SweepPlan(
        [[job] for job in each],
        ExecutorConfig("slurm", runs_per_job=runs_per_job),
        tmp_path,
        seconds_of={number: 60.0 * length for number, length in minutes.items()},
    )
    assert [len(task) for task in plan.tasks(plan.stacks)] == sizes


# ---- sweeps


def test_same_bytes_as_one_by_one(bnexp: Bnexp, state: Path) -> None:
    """With an array limit of 3, five jobs are two arrays."""
    words = (*SWEEP, "seed=range(5)")
    assert bnexp(*words, "executor=inline", "hydra.sweep.dir=inline").status == 0
    outcome = bnexp(*words, *SLURM, "executor.runs_per_job=2", "executor.partition=short", "executor.gpus=a100:1")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1].endswith("finished: 10 of 10 runs; compare them by: bnexp report s")
    for run in Path("inline").glob("norm=*"):
        for file in ("metrics.csv", "checkpoint.safetensors"):
            assert (run / file).read_bytes() == Path("s", run.name, file).read_bytes()
        assert Path("s", run.name, ".hydra", "config.yaml").exists()
    first, second = (Path(state, f"{number}.options").read_text() for number in (1, 2))
    assert "--array=0-2 --time=10 --signal=B:USR1@120 " in first
    assert "--array=0-1 " in second
    assert "--gpus=a100:1 --partition=short" in first


@pytest.mark.extra
def test_a_lost_job_is_submitted_again_and_then_failed(bnexp: Bnexp, state: Path) -> None:
    outcome = bnexp(*SWEEP, *SLURM, "executor.setup='kill -9 $$'")
    assert outcome.status == 1
    assert outcome.err.count("job 2_0 was lost (FAILED: ") == 2, "of each run, in the error"
    assert "starting 2 runs again as 2 stacks" in outcome.out or outcome.out.count("starting 1 run again") == 2
    assert bnexp(*SWEEP, *SLURM).status == 0


@pytest.mark.extra
def test_cancelled_jobs_are_not_submitted_again(bnexp: Bnexp, state: Path) -> None:
    words = (*SWEEP[:4], "steps=30000", *SWEEP[5:])

    def cancel() -> None:
        while not list(Path("s").glob("*/metrics.csv")):
            time.sleep(0.05)
        slurm.run("scancel", "1_0")

    thread = threading.Thread(target=cancel)
    thread.start()
    outcome = bnexp(*words, *SLURM)
    thread.join()
    assert outcome.status == 1
    assert "2 of 2 runs were interrupted: norm=none (job 1_0 was cancelled" in outcome.err
    assert not Path(state, "2.script").exists()


@pytest.mark.extra
def test_a_limit_of_submissions_and_an_unreachable_slurm_are_waited_out(
    bnexp: Bnexp, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "SUBMIT_EVERY", 0.5)
    (state / "full").touch()

    def recover() -> None:
        while not Path("s/norm=none,seed=0/metrics.csv").exists():
            time.sleep(0.05)
        (state / "unreachable").touch()
        while not (state / "asked for jobs").exists():  # the jobs train for longer than it takes to ask
            time.sleep(0.05)
        for name in ("unreachable", "full"):
            (state / name).unlink()

    thread = threading.Thread(target=recover)
    thread.start()
    words = (*SWEEP[:4], "steps=2000", *SWEEP[5:])
    outcome = bnexp(*words, "seed=0,1", *SLURM, "executor.runs_per_job=1")
    thread.join()
    assert outcome.status == 0
    assert ": the rest (1 job) is submitted later" in outcome.out
    assert "Slurm can't be reached (slurm_load_jobs error: Unable to contact" in outcome.out


@pytest.mark.extra
def test_a_limit_that_is_smaller_than_an_array(bnexp: Bnexp, state: Path) -> None:
    (state / "at most 1").touch()
    outcome = bnexp(*SWEEP, "seed=0,1", *SLURM, "executor.runs_per_job=1")
    assert (outcome.status, outcome.err) == (0, "")
    assert len(list(state.glob("*.options"))) == 4


def test_a_single_run_is_not_for_a_cluster(bnexp: Bnexp, state: Path) -> None:
    outcome = bnexp("train", *SWEEP[2:3], "executor=slurm")
    line = "executor=slurm is for sweeps: add -m, or executor=inline to train here"
    assert (outcome.status, outcome.err) == (2, f"bnexp: {line}\n")


@pytest.mark.extra
def test_a_job_of_several_stacks_is_joined_whatever_of_it_is_complete(bnexp: Bnexp, state: Path) -> None:
    """The first of its two stacks ends before the second command begins."""
    words = (*SWEEP[:3], "seed=0,1", "steps=2000", *SWEEP[5:])
    assert bnexp(*words, *SLURM, "executor.detach=true").status == 0
    while not Path("s/seed=0/summary.json").exists():
        time.sleep(0.05)
    outcome = bnexp(*words, *SLURM)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1].endswith("finished: 1 of 1 run; compare them by: bnexp report s")
    assert not Path(state, "2.script").exists()


def test_a_slurm_that_does_not_answer_may_hold_the_runs(bnexp: Bnexp, state: Path) -> None:
    assert bnexp(*SWEEP, *SLURM, "executor.detach=true").status == 0
    (state / "unreachable").touch()
    outcome = bnexp(*SWEEP, "executor=inline", "hydra.sweep.dir=s")
    assert outcome.status == 2
    assert outcome.err.startswith("bnexp: Slurm can't be reached (slurm_load_jobs error")
    (state / "unreachable").unlink()
    assert bnexp(*SWEEP, *SLURM).status == 0


def test_a_slurm_that_takes_no_job(bnexp: Bnexp, state: Path) -> None:
    (state / "1.script").touch()
    (state / "full").touch()
    outcome = bnexp(*SWEEP, *SLURM)
    assert outcome.status == 2
    assert outcome.err == "bnexp: Slurm refused the jobs: sbatch: error: Batch job submission failed: a limit\n"


def test_detached_jobs_are_joined(bnexp: Bnexp, state: Path) -> None:
    words = (*SWEEP[:4], "steps=1500", *SWEEP[5:])
    assert bnexp("compare", *words[2:], "seed=0,1", *SLURM, "executor.detach=true").out.splitlines()[-1] == (
        "s: submitted; the same command without executor.detach joins the jobs"
    )
    refused = bnexp(*words, "seed=0,1", "executor=inline", "hydra.sweep.dir=s")
    assert (refused.status, refused.err) == (2, "bnexp: s is in use: jobs of Slurm train 4 runs of it, or will\n")
    outcome = bnexp("resume", "s")
    assert outcome.status == 0
    assert "joined 1 job of Slurm that an earlier command submitted" in outcome.out
    assert not Path(state, "2.script").exists()
    assert Path("s/compare.md").exists()


# ---- what is refused


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("executor.timeout_min=4", "executor.timeout_min=4 is not allowed: auto or a whole number from 5 to 1000000"),
        ("executor.partition='a b'", "executor.partition=a b is not allowed: null or the name of a partition"),
        ("executor.account='a;b'", "executor.account=a;b is not allowed: null or the name of an account"),
        ("executor.nodelist='n1 n2'", "executor.nodelist=n1 n2 is not allowed: null or names of nodes, as node[1-4]"),
        ("executor.nodelist=n9", "executor.nodelist=n9 is not allowed: nodes of n1, n2, n3"),
        ("executor.mem_gb=-1", "executor.mem_gb=-1 is not allowed: null or a number of GB"),
        ("executor.gpus=many", "executor.gpus=many is not allowed: null, a number of GPUs, or TYPE:NUMBER"),
        ("executor.detach=2", "executor.detach=2 is not allowed: true or false"),
        ("executor.workers=2", "executor.workers is a key that the chosen executor doesn't have"),
        ("executor=moon", "executor=moon is unknown: choose from inline, processes, ray, slurm"),
    ],
)
def test_what_is_refused(bnexp: Bnexp, state: Path, word: str, line: str) -> None:
    outcome = bnexp(*SWEEP, *(() if word == "executor=moon" else SLURM[:1]), word)
    assert (outcome.status, outcome.err) == (2, f"bnexp: {line}\n")
    assert not list(state.glob("*.script"))


def test_a_setup_is_not_read_from_a_record(bnexp: Bnexp, state: Path) -> None:
    assert bnexp(*SWEEP, *SLURM, "executor.setup='touch here'").status == 0
    assert Path("here").exists()
    assert "touch" not in Path("s/sweep.json").read_text()
    outcome = bnexp("resume", "s")
    line = "executor.setup is not read from a record: repeat the sweep's command, which resumes it"
    assert (outcome.status, outcome.err) == (2, f"bnexp: s/sweep.json cannot be read: {line}\n")


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("hydra/launcher=joblib", "executor=processes"),
        ("hydra/launcher=submitit_slurm", "slurm"),
        ("hydra.launcher.workers=2", "executor.workers"),
        ("+hydra.launcher.submit_with.timeout_min=2", "executor=slurm"),
        ("hydra.launcher.max_stack=2", "executor.max_stack"),
        ("hydra.job.name=x", "hydra.run.dir"),
    ],
)
def test_the_words_of_before_are_refused_with_the_new_ones(bnexp: Bnexp, word: str, instead: str) -> None:
    outcome = bnexp(*SWEEP, word)
    assert outcome.status == 2
    [line] = outcome.err.splitlines()
    assert line.startswith(f"bnexp: {word} is not allowed: use ")
    assert instead in line


def test_executors_whose_programs_are_missing(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnexp.sweeps.executor_config.find_spec", lambda name: None)
    monkeypatch.setattr("bnexp.sweeps.executor_config.shutil.which", lambda name: None)
    outcome = bnexp(*SWEEP, "executor=slurm")
    line = "executor=slurm needs the commands of Slurm, and there is no sbatch here"
    assert (outcome.status, outcome.err) == (2, f"bnexp: {line}\n")
    outcome = bnexp(*SWEEP, "executor=ray")
    assert (outcome.status, outcome.err) == (2, "bnexp: executor=ray needs ray: pip install 'bnexp[ray]'\n")
