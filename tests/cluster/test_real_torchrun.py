"""Runs of torchrun: processes that are lost, runs that are resumed by the same command, networks of their own."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from clusters import PATIENCE, SAME, pids_of, wait_for

from bnexp.runs.record import read_run

pytestmark = pytest.mark.cluster

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
RUN = ("dataset=digits", "norm=sync_batch", "steps=600", "eval.every=100", "threads=1", "device=cpu")
RUN += ("checkpoint.every_seconds=0.2", "arch.hidden=[32,32]")
Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Start torchrun in an empty folder; its output goes to the file `output`."""
    monkeypatch.chdir(tmp_path)
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str, options: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
        with Path("output").open("a", encoding="utf-8") as file:
            line = [*TORCHRUN, *options, "-m", "bnexp", "train", *RUN, *words]
            started.append(subprocess.Popen(line, stdout=file, stderr=file, encoding="utf-8"))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def output() -> str:
    return Path("output").read_text(encoding="utf-8")


def ranks() -> dict[str, int]:
    """Rank → process."""
    pids: dict[str, int] = {}
    for pid in pids_of("bnexp train dataset=digits norm=sync_batch"):
        with suppress(OSError):  # it has just ended
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            pids |= {entry[5:].decode(): pid for entry in variables if entry.startswith(b"RANK=")}
    return pids


def killed_after_a_checkpoint(process: "subprocess.Popen[str]", rank: str) -> float:
    """Wait for a saved state, and kill a rank; return when."""
    wait_for(lambda: list(Path("r").glob("resume-*.safetensors")) or process.poll() is not None, "a saved state")
    os.kill(ranks()[rank], signal.SIGKILL)
    return time.monotonic()


_undisturbed: list[bytes] = []


def undisturbed(torchrun: Run) -> list[bytes]:
    """What the run writes if nothing happens to it."""
    if not _undisturbed:
        assert torchrun("hydra.run.dir=whole").wait(PATIENCE) == 0
        _undisturbed.extend(Path("whole", name).read_bytes() for name in SAME)
    return _undisturbed


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_killed_rank_stops_the_others_and_the_same_command_resumes(torchrun: Run, rank: str) -> None:
    process = torchrun("hydra.run.dir=r")
    at = killed_after_a_checkpoint(process, rank)
    wait_for(lambda: not ranks(), "the end of the others")
    assert time.monotonic() - at < 10
    assert process.wait(PATIENCE) == 1
    run = read_run(Path("r"))
    assert run.summary["status"] == ("interrupted" if rank == "1" else "unfinished")
    assert "resume it by: torchrun --nproc-per-node 2 -m bnexp train dataset=digits" in output() or rank == "0"
    assert "RuntimeError" not in output()
    assert torchrun("hydra.run.dir=r").wait(PATIENCE) == 0
    assert read_run(Path("r")).record["created"] == run.record["created"], "resumed, not started anew"
    assert [Path("r", name).read_bytes() for name in SAME] == undisturbed(torchrun)
    if rank == "0":
        assert torchrun("hydra.run.dir=r").wait(PATIENCE) == 0
        assert "r is finished: no run remains" in output()


def test_torchrun_restarts_its_processes(torchrun: Run) -> None:
    process = torchrun("hydra.run.dir=r", options=("--max-restarts", "1"))
    killed_after_a_checkpoint(process, "1")
    assert process.wait(PATIENCE) == 0, output()
    assert [Path("r", name).read_bytes() for name in SAME] == undisturbed(torchrun)


def test_another_number_of_processes_is_refused(torchrun: Run) -> None:
    killed_after_a_checkpoint(torchrun("hydra.run.dir=r"), "1")
    wait_for(lambda: not ranks(), "the end of the others")
    done = subprocess.run(
        [sys.executable, "-m", "bnexp", "resume", "r"], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 2
    line = f"torchrun --nproc-per-node 2 -m bnexp train {shlex.join(RUN)} hydra.run.dir=r"
    assert done.stderr == f"bnexp: r was made by 2 processes, not 1: resume it by {line}\n"


# ---- two machines


@dataclass(frozen=True)
class Network:
    """Two network namespaces that a cable connects; each has nothing else but its loopback."""

    names: tuple[str, str] = ("bnexp-a", "bnexp-b")

    def make(self) -> bool:
        first, second = self.names
        steps = [
            f"ip netns add {first}",
            f"ip netns add {second}",
            f"ip link add cable netns {first} type veth peer name cable netns {second}",
            *(f"ip -n {name} addr add 10.77.0.{number}/24 dev cable" for number, name in enumerate(self.names, 1)),
            *(f"ip -n {name} link set {link} up" for name in self.names for link in ("lo", "cable")),
        ]
        return all(subprocess.run(step.split(), capture_output=True, check=False).returncode == 0 for step in steps)

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def torchrun(self, *words: str, interface: str | None) -> tuple[list[int], str]:
        """Run a process in each namespace; return their statuses and what the first printed."""
        environment = os.environ | ({"GLOO_SOCKET_IFNAME": interface} if interface else {})
        processes = []
        for rank, name in enumerate(self.names):
            place = ["--nnodes", "2", "--node-rank", str(rank), "--master-addr", "10.77.0.1", "--master-port", "29501"]
            line = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", *place]
            line += ["--nproc-per-node", "1", "-m", "bnexp", "train", *RUN, *words]
            with Path(f"output-{rank}").open("w", encoding="utf-8") as file:
                processes.append(subprocess.Popen(line, stdout=file, stderr=file, env=environment))
        statuses = [process.wait(PATIENCE) for process in processes]
        return statuses, Path("output-0").read_text(encoding="utf-8")


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    monkeypatch.chdir(tmp_path)
    network = Network()
    network.remove()
    try:
        if not network.make():
            pytest.skip("no network namespaces can be made here")
        yield network
    finally:
        network.remove()


def test_two_machines(network: Network) -> None:
    began = time.monotonic()
    statuses, text = network.torchrun("hydra.run.dir=r", interface=None)
    assert time.monotonic() - began < 75, "60 s, and the start"
    assert statuses == [1, 1]
    assert "bnexp: the processes of torchrun can't reach each other: let GLOO_SOCKET_IFNAME name the network" in text
    statuses, text = network.torchrun("hydra.run.dir=r", interface="cable")
    assert statuses == [0, 0], text
    assert read_run(Path("r")).summary["status"] == "finished"
