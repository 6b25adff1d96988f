"""What the tests of clusters share: a real Slurm on this machine, brought up by the script `slurm` beside this file,
commands in processes of their own, and the bytes that runs have to end in.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bnexp.runs.record import RunRecord, find_runs, last_evaluation

SWEEP = ("train", "-m", "dataset=digits", "norm=none,batch", "steps=4000", "eval.every=500")
SWEEP += ("compile=false", "checkpoint.every_seconds=1", "device=cpu")
SAME = ("metrics.csv", "checkpoint.safetensors")
SCRIPT = Path(__file__).with_name("slurm")
PATIENCE = 90  # seconds for what takes a few


def wait_for(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, f"{what} within {PATIENCE} s"
        time.sleep(0.1)


def output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout


def lacking() -> str:
    """Why no Slurm can be brought up here; "" where one can."""
    if os.geteuid() != 0:
        return "a Slurm of one's own needs root"
    if shutil.which("slurmctld") is None and shutil.which("apt-get") is None:
        return "Slurm is not installed, and there is no apt-get"
    if shutil.which("squeue") and subprocess.run(["sinfo"], capture_output=True, check=False).returncode == 0:
        return "another Slurm runs here"
    installed = subprocess.run([SCRIPT, "install"], capture_output=True, check=False).returncode == 0
    return "" if installed else "Debian's packages of Slurm cannot be installed here"


class Slurm:
    """A Slurm that runs."""

    def resume_nodes(self) -> None:
        """Let nodes that are down, which come back by themselves after a while, take jobs again."""
        for node in ("n1", "n2"):
            subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True, check=False)

    def hurry(self) -> None:
        """Let jobs that were queued again start now: Slurm would wait for two minutes, and hold those that a node that
        has just come back couldn't launch.
        """
        for name in (name for name, state in self.states().items() if state == "PENDING"):
            for words in (["release", name], ["update", f"jobid={name}", "starttime=now"]):
                subprocess.run(["scontrol", *words], capture_output=True, check=False)

    def clear(self) -> None:
        """Cancel all jobs, wait until the nodes are idle."""
        self.resume_nodes()
        output_of("scancel", "--user=root")
        wait_for(lambda: output_of("sinfo", "-h", "-p", "all", "-t", "idle", "-o", "%D").strip() == "2", "idle nodes")

    def states(self) -> dict[str, str]:
        """Task → state, of those that Slurm still knows."""
        lines = output_of("squeue", "--noheader", "--array", "--states=all", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def running(self) -> list[str]:
        return [name for name, state in self.states().items() if state == "RUNNING"]


def brought_up(accounting: bool) -> Iterator[None]:
    """Bring Slurm up in a folder that its users may enter, and end it; skip where that can't be done.

    With accounting, its queue forgets within seconds what has ended.
    """
    if reason := lacking():
        pytest.skip(reason)
    tmp = Path(tempfile.mkdtemp(prefix="bnexp-slurm-"))
    tmp.chmod(0o755)
    lines = "MaxArraySize=3"
    try:
        if accounting:
            subprocess.run([SCRIPT, "accounting", tmp], check=True)
            lines += "\nMinJobAge=2\nAccountingStorageType=accounting_storage/slurmdbd\n"
            lines += "AccountingStorageHost=127.0.0.1\nJobAcctGatherType=jobacct_gather/linux"
        subprocess.run([SCRIPT, "up", tmp, lines], check=True)
        yield
    finally:
        subprocess.run([SCRIPT, "down", tmp], capture_output=True, check=False)


@pytest.fixture(scope="module")
def bring_up() -> Iterator[Callable[[bool], Slurm]]:
    """Bring Slurm up without or with accounting, unless it is; only one can be there at a time."""
    stack, kinds = ExitStack(), list[bool]()

    def choose(accounting: bool) -> Slurm:
        if kinds[-1:] != [accounting]:
            stack.close()
            stack.enter_context(contextmanager(brought_up)(accounting))
            kinds.append(accounting)
        return Slurm()

    with stack:
        yield choose


@pytest.fixture
def slurm(bring_up: Callable[[bool], Slurm]) -> Iterator[Slurm]:
    slurm = bring_up(False)
    yield slurm
    slurm.clear()


@pytest.fixture
def accounting_slurm(bring_up: Callable[[bool], Slurm]) -> Slurm:
    return bring_up(True)


def default_signals() -> None:
    """Don't ignore what whoever started the tests ignores, as nohup does."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@dataclass
class Command:
    """A command of bnexp as a process of its own, whose output goes to a file."""

    process: "subprocess.Popen[bytes]"
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def end(self, meanwhile: Callable[[], object] = lambda: None) -> int:
        """Wait for its end and return its status."""
        until = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < until, self.text
            meanwhile()
            time.sleep(0.2)
        return self.process.returncode

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


Start = Callable[..., Command]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Start a command in an empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    commands: list[Command] = []

    def begin(*words: str) -> Command:
        output = tmp_path / f"output-{len(commands)}"
        with output.open("wb") as file:
            line = [sys.executable, "-m", "bnexp", *words]
            process = subprocess.Popen(line, stdout=file, stderr=subprocess.STDOUT, preexec_fn=default_signals)  # noqa: PLW1509
            commands.append(Command(process, output))
        return commands[-1]

    yield begin
    for command in commands:
        command.process.kill()
        command.process.wait()


# ---- runs

_local: dict[tuple[str, ...], dict[str, list[bytes]]] = {}


def finished(folder: str) -> list[RunRecord]:
    return [run for run in find_runs([Path(folder)]) if run.summary["status"] == "finished"]


def files_of(folder: str) -> dict[str, list[bytes]]:
    return {run.directory.name: [(run.directory / name).read_bytes() for name in SAME] for run in finished(folder)}


def local(start: Start, *words: str) -> dict[str, list[bytes]]:
    """What a sweep writes on this machine."""
    if words not in _local:
        assert start(*words, "hydra.sweep.dir=local").end() == 0
        _local[words] = files_of("local")
    return _local[words]


def training(command: Command, folder: str = "s") -> Path:
    """Wait until a run is in the midst of its training; return its directory."""

    def midway() -> list[Path]:
        assert command.process.poll() is None, command.text
        runs = [run.directory for run in find_runs([Path(folder)]) if run.summary["status"] == "unfinished"]
        return [run for run in runs if (last_evaluation(run) or (0, 0))[0] >= 500]

    seen: list[Path] = []
    wait_for(lambda: seen.extend(midway()) or seen, "a run that trains")
    return seen[0]


def pids_of(pattern: str) -> list[int]:
    """The processes whose command line matches a pattern."""
    done = subprocess.run(["pgrep", "-f", pattern], capture_output=True, encoding="utf-8", check=False)
    return [int(pid) for pid in done.stdout.split()]
