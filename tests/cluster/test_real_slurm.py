"""executor=slurm on a real Slurm of two nodes: whatever happens to its jobs and its drivers, every run ends in the
bytes that it has without any of it.
"""

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from clusters import (  # noqa: F401 - fixtures
    SWEEP,
    Slurm,
    Start,
    accounting_slurm,
    bring_up,
    files_of,
    finished,
    local,
    output_of,
    pids_of,
    slurm,
    start,
    training,
    wait_for,
)

pytestmark = pytest.mark.cluster

SLURM = ("executor=slurm", "hydra.sweep.dir=s")


def signalled(pid: int, number: signal.Signals) -> bool:
    """Whether a process that was stopped has been sent a signal, or has ended by it, since Slurm wakes it."""
    with suppress(FileNotFoundError):
        [mask] = re.findall(r"^ShdPnd:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return bool(int(mask, 16) >> (number - 1) & 1)
    return True


def pids_of_jobs(index: str = "") -> list[int]:
    """The processes of a sweep's jobs, or of the one at an index; not their children, which become other programs."""
    pids = pids_of(f"slurm_task {Path('s').absolute()}/.* {index}")
    children = output_of("ps", "--no-headers", "-o", "pid", "--ppid", ",".join(map(str, [1, *pids])))
    return [pid for pid in pids if str(pid) not in children.split()]


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
    words = ("train", "-m", "dataset=digits", "seed=range(4)", "steps=10", "compile=false", "device=cpu")
    command = start(*words, *SLURM, "executor.runs_per_job=1")
    assert command.end() == 0, command.text
    assert "4 jobs of slurm" in command.text
    assert len(list(Path("s/.slurm").glob("*.id"))) == 2
    assert files_of("s") == local(start, *words)


# ---- jobs that end early


def test_a_killed_process_is_started_again(slurm: Slurm, start: Start) -> None:
    command = start(*SWEEP, *SLURM, "executor.runs_per_job=1")
    training(command)
    os.kill(pids_of_jobs()[0], signal.SIGKILL)
    assert command.end() == 0, command.text
    assert "was lost (FAILED" in command.text
    assert files_of("s") == local(start, *SWEEP)


def test_a_run_that_is_lost_twice_has_failed_and_can_be_resumed(slurm: Slurm, start: Start) -> None:
    command = start(*SWEEP, *SLURM, "executor.runs_per_job=1", "executor.setup='ulimit -v 1000'")
    assert command.end() == 1
    assert "2 of 2 runs failed" in command.text
    assert start(*SWEEP, *SLURM).end() == 0
    assert files_of("s") == local(start, *SWEEP)


def test_jobs_that_the_user_cancels_are_interrupted_and_not_submitted_again(slurm: Slurm, start: Start) -> None:
    command = start(*SWEEP, *SLURM, "executor.runs_per_job=1")
    directory = training(command)
    output_of("scancel", slurm.running()[0])
    assert command.end() == 1
    lines = command.text.splitlines()
    assert "1 of 2 runs were interrupted" in lines[-1]
    assert "interrupted: " in lines[-2]
    assert "was lost" not in command.text
    assert len(list(Path("s/.slurm").glob("*.id"))) == 1
    assert directory.exists()
    assert start("resume", "s").end() == 0
    assert files_of("s") == local(start, *SWEEP)


def test_a_node_that_goes_down_and_comes_back(slurm: Slurm, start: Start) -> None:
    command = start(*SWEEP, *SLURM, "executor.runs_per_job=1")
    training(command)
    index = output_of("squeue", "--noheader", "--nodelist=n1", "--format=%K").strip()
    output_of("scontrol", "update", "nodename=n1", "state=down", "reason=test")
    wait_for(lambda: not pids_of_jobs(index), "the end of the node's process")
    slurm.resume_nodes()
    assert command.end(slurm.hurry) == 0, command.text
    assert "was queued again, 1 time so far" in command.text
    assert files_of("s") == local(start, *SWEEP)


def test_a_time_limit_that_is_reached(slurm: Slurm, start: Start) -> None:
    command = start(*SWEEP, *SLURM, "executor.runs_per_job=1")
    training(command)
    held = pids_of_jobs()  # until Slurm, which looks every 30 s, has sent its signal 2 minutes before the limit
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    for name in slurm.running():
        output_of("scontrol", "update", f"jobid={name}", "timelimit=2")
    wait_for(lambda: all(signalled(pid, signal.SIGUSR1) for pid in held), "the signal")
    for pid in held:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    assert command.end(slurm.hurry) == 0, command.text
    assert command.text.count("was queued again, 1 time so far") == len(held)
    assert files_of("s") == local(start, *SWEEP)


def test_jobs_that_are_preempted(slurm: Slurm, start: Start) -> None:
    command = start(*SWEEP, *SLURM, "executor.runs_per_job=1", "executor.partition=all")
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
    assert len(finished("s")) == 2


# ---- drivers that end early


def test_a_driver_that_is_asked_to_stop_cancels_its_jobs(slurm: Slurm, start: Start) -> None:
    command = start(*SWEEP, *SLURM, "executor.runs_per_job=1")
    training(command)
    command.send(signal.SIGTERM)
    assert command.end() == 128 + signal.SIGTERM
    assert pids_of_jobs() == [], "nothing runs any more"
    assert not {"RUNNING", "PENDING", "COMPLETING"} & set(slurm.states().values())
    assert "resume it by: bnexp resume s" in command.text
    assert start("resume", "s").end() == 0
    assert files_of("s") == local(start, *SWEEP)


@pytest.mark.parametrize(("number", "again"), [(signal.SIGKILL, (*SWEEP, *SLURM)), (signal.SIGHUP, ("resume", "s"))])
def test_a_driver_that_is_lost_leaves_its_jobs_to_the_next(
    slurm: Slurm, start: Start, number: signal.Signals, again: tuple[str, ...]
) -> None:
    command = start(*SWEEP, *SLURM, "executor.runs_per_job=1")
    training(command)
    held = pids_of_jobs()  # so that the jobs outlast the commands
    for pid in held:
        os.kill(pid, signal.SIGSTOP)
    command.send(number)
    command.end()
    assert pids_of_jobs() == held, "the jobs go on"
    other = start(*SWEEP, "executor=inline", "hydra.sweep.dir=s")
    assert other.end() == 2
    assert "is in use: jobs of Slurm train" in other.text
    second = start(*again)
    wait_for(lambda: "of Slurm that an earlier command submitted" in second.text, "the jobs taken over")
    for pid in held:
        os.kill(pid, signal.SIGCONT)
    assert second.end() == 0, second.text
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
    assert "interrupted: 2 of 2 runs waiting" in command.text


def test_a_list_of_nodes(slurm: Slurm, start: Start) -> None:
    words = ("train", "-m", "dataset=digits", "seed=0,1", "steps=10", "compile=false", "device=cpu")
    command = start(*words, *SLURM, "executor.nodelist=n2", "executor.runs_per_job=1", "executor.mem_gb=1.5")
    wait_for(slurm.running, "a job")
    [array] = {name.partition("_")[0] for name in slurm.running()}
    assert command.end() == 0, command.text
    shown = output_of("scontrol", "show", "job", array)
    assert shown.count("ExcNodeList=n1") == 2
    assert "MinMemoryNode=1.50G" in shown


# ---- with accounting: the queue forgets within seconds what has ended


def test_a_killed_process_and_a_cancelled_job_are_told_apart_by_the_accounting(
    accounting_slurm: Slurm,
    start: Start,
) -> None:
    command = start(*SWEEP, *SLURM, "executor.runs_per_job=1")
    training(command)
    wait_for(lambda: len(accounting_slurm.running()) == 2, "both jobs")
    [first] = [name for name in accounting_slurm.running() if name.endswith("_0")]
    wait_for(lambda: pids_of(r"slurm_task .* 1$"), "the process of the second")
    os.kill(pids_of(r"slurm_task .* 1$")[0], signal.SIGKILL)
    output_of("scancel", first)
    assert command.end() == 1
    assert "_1 was lost (FAILED" in command.text
    assert "1 of 2 runs were interrupted" in command.text.splitlines()[-1]
    assert start("resume", "s").end() == 0
    assert files_of("s") == local(start, *SWEEP)
