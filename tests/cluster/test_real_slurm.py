"""executor=slurm on a real Slurm of two nodes: whatever happens to its jobs and its drivers, every run ends in the
bytes that it has without any of it.
"""

import os
import signal
from pathlib import Path

import pytest
from clusters import (  # noqa: F401 - fixtures
    SWEEP,
    Slurm,
    Start,
    files_of,
    finished,
    local,
    output_of,
    pids_of,
    plain_slurm,
    slurm,
    start,
    training,
    wait_for,
)

pytestmark = pytest.mark.cluster

SLURM = ("executor=slurm", "hydra.sweep.dir=s")


def pids_of_jobs(folder: str = "s") -> list[int]:
    return pids_of(f"slurm_task {Path(folder).absolute()}/")


# ---- as on this machine


def test_the_same_bytes_in_stacks_and_one_by_one_compiled_and_not(slurm: Slurm, start: Start) -> None:
    words = ("train", "-m", "dataset=digits", "norm=batch", "seed=0,1", "optim.lr=0.1,0.2", "steps=300")
    words += ("compile=true", "device=cpu")
    assert start(*words, *SLURM, "executor.max_stack=2", "executor.runs_per_job=4").end() == 0
    assert files_of("s") == local(start, *words)
    assert {run.record["stack"] for run in finished("s")} == {2}


def test_networks_for_images_share_jobs(slurm: Slurm, start: Start) -> None:
    words = ("train", "-m", "dataset=digits", "arch=convnet", "arch.channels=[4,4]", "norm=none,batch", "seed=0,1,2")
    words += ("steps=20", "threads=1", "device=cpu")
    command = start(*words, *SLURM, "executor.runs_per_job=4")
    assert command.end() == 0, command.text
    assert "6 runs: one by one as 2 jobs of slurm" in command.text
    assert files_of("s") == local(start, *words)


def test_arrays_over_the_limit_are_submitted_in_parts(slurm: Slurm, start: Start) -> None:
    words = ("train", "-m", "dataset=digits", "seed=range(12)", "steps=10", "compile=false", "device=cpu")
    command = start(*words, *SLURM, "executor.runs_per_job=1")
    assert command.end() == 0, command.text
    assert "12 jobs of slurm" in command.text
    assert len(list(Path("s/.slurm").glob("*.id"))) == 2
    assert files_of("s") == local(start, *words)


# ---- jobs that end early


def test_a_killed_process_is_started_again(slurm: Slurm, start: Start) -> None:
    kill_a_process(start)


def kill_a_process(start: Start) -> None:
    """Kill one of a sweep's processes, and wait for the sweep's end."""
    command = start(*SWEEP, *SLURM, "executor.runs_per_job=2")
    training(command)
    os.kill(pids_of_jobs()[0], signal.SIGKILL)
    assert command.end() == 0, command.text
    assert "was lost (FAILED" in command.text
    assert files_of("s") == local(start, *SWEEP)


def test_a_run_that_is_lost_twice_has_failed_and_can_be_resumed(slurm: Slurm, start: Start) -> None:
    words = (*SWEEP[:4], "seed=0", *SWEEP[5:])
    command = start(*words, *SLURM, "executor.runs_per_job=1", "executor.setup='ulimit -v 1000'")
    assert command.end() == 1
    assert "2 of 2 runs failed" in command.text
    assert "failed: 2 of 2 runs" in command.text or "waiting" in command.text
    assert start(*words, *SLURM).end() == 0
    assert files_of("s") == local(start, *words)


def test_jobs_that_the_user_cancels_are_interrupted_and_not_submitted_again(slurm: Slurm, start: Start) -> None:
    command = start(*SWEEP, *SLURM, "executor.runs_per_job=2")
    directory = training(command)
    output_of("scancel", slurm.running()[0])
    assert command.end() == 1
    lines = command.text.splitlines()
    assert "2 of 4 runs were interrupted" in lines[-1]
    assert "interrupted: " in lines[-2]
    assert "was lost" not in command.text
    assert len(list(Path("s/.slurm").glob("*.id"))) == 1
    assert directory.exists()
    assert start("resume", "s").end() == 0
    assert files_of("s") == local(start, *SWEEP)


def test_a_node_that_goes_down_and_comes_back(slurm: Slurm, start: Start) -> None:
    command = start(*SWEEP, *SLURM, "executor.runs_per_job=2")
    training(command)
    output_of("scontrol", "update", "nodename=n1", "state=down", "reason=test")
    slurm.resume_nodes()
    assert command.end(slurm.hurry) == 0, command.text
    assert "was queued again, 1 time so far" in command.text
    assert files_of("s") == local(start, *SWEEP)


def test_a_time_limit_that_is_reached(slurm: Slurm, start: Start) -> None:
    command = start(*SWEEP, *SLURM, "executor.runs_per_job=2")
    training(command)
    [name, *_] = slurm.running()
    output_of("scontrol", "update", f"jobid={name}", "timelimit=2")  # the signal comes 2 minutes before
    assert command.end(slurm.hurry) == 0, command.text
    assert f"job {name} was queued again, 1 time so far" in command.text
    assert files_of("s") == local(start, *SWEEP)


def test_jobs_that_are_preempted(slurm: Slurm, start: Start) -> None:
    command = start(*SWEEP, *SLURM, "executor.runs_per_job=2", "executor.partition=all")
    training(command)
    output_of("sbatch", "--partition=first", "--nodes=2", "--output=/dev/null", "--wrap=sleep 1")
    assert command.end(slurm.hurry) == 0, command.text
    assert command.text.count("was queued again") == 2
    assert files_of("s") == local(start, *SWEEP)


def test_a_node_without_a_compiler_fails_its_runs_which_stay_resumable(slurm: Slurm, start: Start) -> None:
    words = ("train", "-m", "dataset=digits", "seed=0,1", "steps=300", "compile=true", "device=cpu")
    broken = "executor.setup='export PATH=/bin-of-nobody CXX=/bin-of-nobody/g++ XDG_CACHE_HOME=/tmp/of-nobody'"
    command = start(*words, *SLURM, broken)
    assert command.end() == 1
    assert "compile" in command.text.splitlines()[-1]
    assert "Traceback" not in command.text
    assert start(*words, *SLURM).end() == 0
    assert files_of("s") == local(start, *words)


# ---- drivers that end early


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_is_asked_to_stop_cancels_its_jobs(slurm: Slurm, start: Start, number: signal.Signals) -> None:
    command = start(*SWEEP, *SLURM, "executor.runs_per_job=1")
    training(command)
    command.send(number)
    assert command.end() == 128 + number
    assert pids_of_jobs() == [], "nothing runs any more"
    assert not {"RUNNING", "PENDING", "COMPLETING"} & set(slurm.states().values())
    assert "resume it by: bnexp resume s" in command.text
    assert start("resume", "s").end() == 0
    assert files_of("s") == local(start, *SWEEP)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
@pytest.mark.parametrize("again", [(*SWEEP, *SLURM), ("resume", "s")])
def test_a_driver_that_is_lost_leaves_its_jobs_to_the_next(
    slurm: Slurm, start: Start, number: signal.Signals, again: tuple[str, ...]
) -> None:
    command = start(*SWEEP, *SLURM, "executor.runs_per_job=1")
    training(command)
    command.send(number)
    command.end()
    assert pids_of_jobs(), "the jobs go on"
    other = start(*SWEEP, "executor=inline", "hydra.sweep.dir=s")
    assert other.end() == 2
    assert "is in use: jobs of Slurm train" in other.text
    second = start(*again)
    assert second.end() == 0, second.text
    assert "of Slurm that an earlier command submitted" in second.text
    assert "running" in second.text or "test accuracy" in second.text
    assert len(list(Path("s/.slurm").glob("*.id"))) == 1, "nothing was submitted twice"
    assert files_of("s") == local(start, *SWEEP)


def test_detach(slurm: Slurm, start: Start) -> None:
    command = start(*SWEEP, *SLURM, "executor.runs_per_job=1", "executor.detach=true")
    assert command.end() == 0
    assert command.text.splitlines()[-1].startswith("s: submitted")
    assert start("resume", "s").end() == 0
    assert files_of("s") == local(start, *SWEEP)


# ---- what is refused


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("executor.partition=nowhere", "Slurm refused the jobs: sbatch: error: Batch job submission failed: "),
        ("executor.nodelist=n9", "executor.nodelist=n9 is not allowed: nodes of n1, n2"),
        ("executor.timeout_min=4", "executor.timeout_min=4 is not allowed: auto or a whole number from 5 to 1000000"),
    ],
)
def test_what_slurm_refuses(slurm: Slurm, start: Start, word: str, line: str) -> None:
    command = start(*SWEEP, *SLURM, word)
    assert command.end() == 2
    assert command.text.splitlines()[-1].startswith(f"bnexp: {line}")
    assert "Traceback" not in command.text


def test_why_jobs_wait_is_said(slurm: Slurm, start: Start) -> None:
    command = start(*SWEEP, *SLURM, "executor.cpus=400")
    wait_for(lambda: "jobs of Slurm wait: PartitionConfig" in command.text, "the reason")
    command.send(signal.SIGINT)
    assert command.end() == 130
    assert "interrupted: 4 of 4 runs waiting" in command.text


def test_a_list_of_nodes(slurm: Slurm, start: Start) -> None:
    words = ("train", "-m", "dataset=digits", "seed=0,1", "steps=10", "compile=false", "device=cpu")
    command = start(*words, *SLURM, "executor.nodelist=n2", "executor.runs_per_job=1", "executor.mem_gb=1.5")
    wait_for(slurm.running, "a job")
    [array] = {name.partition("_")[0] for name in slurm.running()}
    assert command.end() == 0, command.text
    shown = output_of("scontrol", "show", "job", array)
    assert shown.count("ExcNodeList=n1") == 2
    assert "MinMemoryNode=1536M" in shown
