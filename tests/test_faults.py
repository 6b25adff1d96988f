"""What may happen to a run, many times over: kills, damage, full disks, others in the same directory.

`make test` does a fiftieth of it; `make test-faults` all of it (--faults=1), and writes results/reliability.md.
"""

import errno
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bnexp import files
from bnexp.cli import run
from bnexp.runs import find_runs
from bnexp.storage import DamagedFileError, load_tensors

COMMON = ("train", "dataset=digits", "steps=300", "eval.first_every=50", "checkpoint.every_seconds=0.05", "threads=1")
NETWORKS = [
    (f"arch={arch}", f"norm={norm}", f"optim={optim}")
    for arch in ("mlp", "convnet")
    for norm in ("none", "batch")
    for optim in ("sgd", "adam")
]
Times = Callable[[int], int]


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Times:
    """How often, of the full count."""
    share: float = request.config.getoption("--faults")
    return lambda full: max(1, round(full * share))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def start_child(words: tuple[str, ...], prepare: Callable[[], object] = lambda: None) -> int:
    """A process of its own that runs the command; a fork, which needs no seconds to import torch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the parent's threads are TensorBoard's writers, at rest
        pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        with open("said", "a") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        prepare()
        status = run([*words])
    finally:
        os._exit(status)


def end_of(pid: int) -> int:
    """Exit status; of a signal, its number below 0."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(words: tuple[str, ...], prepare: Callable[[], object] = lambda: None) -> int:
    return end_of(start_child(words, prepare))


def files_of(folder: str) -> list[bytes]:
    return [Path(folder, name).read_bytes() for name in ("metrics.csv", "checkpoint.safetensors")]


def network(number: int) -> tuple[str, ...]:
    words = NETWORKS[number % len(NETWORKS)]
    return (*COMMON, *words, *(("arch.channels=[4]", "arch.dense=16") if "arch=convnet" in words else ()))


def whole(number: int) -> tuple[list[bytes], float]:
    """Files of a run that nothing befell, and its seconds."""
    folder, began = f"whole{number % len(NETWORKS)}", time.monotonic()
    if not Path(folder).exists():
        assert in_child((*network(number), f"hydra.run.dir={folder}")) == 0
        Path(folder, "seconds").write_text(str(time.monotonic() - began))
    return files_of(folder), float(Path(folder, "seconds").read_text())


def die_at_sync(count: int) -> Callable[[], None]:
    """Killed within the n-th flush to the disk: a checkpoint has four of them."""

    def prepare() -> None:
        sync, left = files.sync, [count]

        def counted(path: Path) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(path)

        files.sync = counted

    return prepare


def test_kills_at_random_moments_and_within_a_save(times: Times, record_property: Callable[..., None]) -> None:
    chance, same, killed = random.Random(0), 0, 0
    for number in range(count := times(100)):
        expected, seconds = whole(number)
        words = (*network(number), "hydra.run.dir=mine")
        if number % 10 < 3:
            status = in_child(words, die_at_sync(chance.randint(1, 24)))
        else:
            pid = start_child(words)
            time.sleep(chance.uniform(0, seconds))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            status = end_of(pid)
        killed += status == -signal.SIGKILL
        if Path("mine", "run.json").exists():
            assert in_child(("resume", "mine")) == 0
        else:
            shutil.rmtree("mine", ignore_errors=True)
            assert in_child(words) == 0
        same += files_of("mine") == expected
        assert not [*Path("mine").glob("*.part"), *Path("mine").glob("resume-*")]
        shutil.rmtree("mine")
    record_property("faults", f"SIGKILL at a random moment or within a save, resumed: {same} of {count} the same bytes")
    assert same == count
    assert killed >= count / 2


def test_one_run_killed_twenty_times(times: Times, record_property: Callable[..., None]) -> None:
    chance = random.Random(1)
    expected, seconds = whole(3)
    for number in range(count := times(20)):
        pid = start_child((*network(3), "hydra.run.dir=mine") if not number else ("resume", "mine"))
        time.sleep(chance.uniform(0.1, seconds / 3))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        end_of(pid)
    assert in_child((*network(3), "hydra.run.dir=mine")) == 0
    record_property("faults", f"one run killed {count} times: the same bytes")
    assert files_of("mine") == expected


def test_bit_flips_and_truncations(times: Times, record_property: Callable[..., None]) -> None:
    chance, found = random.Random(2), 0
    assert in_child((*network(1), "steps=5", "hydra.run.dir=mine")) == 0
    path = Path("mine", "checkpoint.safetensors")
    beside = path.with_name(f"{path.name}.sha256")
    contents = {file: file.read_bytes() for file in (path, beside)}
    flips, cuts = times(1000), times(200)
    for number in range(flips + cuts):
        file = path if number % 10 else beside
        damaged = bytearray(contents[file][:65] if file == beside else contents[file])
        if number < flips:
            damaged[chance.randrange(len(damaged) - (file == beside))] ^= 1 << chance.randrange(8)
        else:
            del damaged[chance.choice([0, chance.randrange(len(damaged) - 1)]) :]
        file.write_bytes(damaged)
        with suppress(DamagedFileError):
            load_tensors(path)
            continue
        found += 1
        file.write_bytes(contents[file])
    record_property("faults", f"{flips} bit flips and {cuts} truncations of a checkpoint: {found} detected")
    assert found == flips + cuts


def failing(operation: str, number: int, code: int) -> Callable[[], None]:
    """The n-th of these fails, as on a full disk, with a permission lost, on a broken disk."""

    def prepare() -> None:
        real: Any = getattr(os, operation)
        left = [number]

        def fails(*arguments: Any, **settings: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(code, os.strerror(code), str(arguments[0]))
            return real(*arguments, **settings)

        setattr(os, operation, fails)

    return prepare


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_write_that_fails(times: Times, record_property: Callable[..., None], code: int) -> None:
    expected, _ = whole(1)
    tried = failed = 0
    points = [(operation, number) for operation in ("fsync", "replace") for number in range(1, 31)]
    for operation, number in random.Random(code).sample(points, times(len(points))):
        status = in_child((*network(1), "hydra.run.dir=mine"), failing(operation, number, code))
        tried, failed = tried + 1, failed + (status == 1)
        assert status in (0, 1)
        assert in_child((*network(1), "hydra.run.dir=mine")) == 0
        assert files_of("mine") == expected
        assert not [*Path("mine").glob("*.part")]
        shutil.rmtree("mine")
    name = errno.errorcode[code]
    record_property("faults", f"{name} at a flush or a rename: {failed} of {tried} runs stopped; same bytes in the end")
    assert failed
    assert "Traceback" not in Path("said").read_text()


def test_starts_in_one_directory(times: Times, record_property: Callable[..., None]) -> None:
    for _ in range(rounds := times(50)):
        pids = [start_child((*COMMON, "steps=60", f"seed={seed}", "hydra.run.dir=mine")) for seed in range(8)]
        ends = [end_of(pid) for pid in pids]
        assert sorted(ends) == [0, *[2] * 7]
        [run_there] = find_runs([Path("mine")])
        assert run_there.seed == ends.index(0)
        assert f"seed: {run_there.seed}" in Path("mine/.hydra/config.yaml").read_text()
        assert run_there.summary["status"] == "finished"
        shutil.rmtree("mine")
    record_property("faults", f"8 starts at once in one directory, {rounds} rounds: one owner each, no run mixed")


def test_sweeps_of_the_same_second(times: Times, record_property: Callable[..., None]) -> None:
    for _ in range(rounds := times(50)):
        pids = [start_child((*COMMON, "steps=2", "-m", f"seed={seed},{seed + 8}")) for seed in range(8)]
        assert [end_of(pid) for pid in pids] == [0] * 8
        found = [sorted(one.seed for one in find_runs([folder])) for folder in Path("results/sweeps").iterdir()]
        assert sorted(found) == [[seed, seed + 8] for seed in range(8)]
        shutil.rmtree("results")
    record_property("faults", f"8 sweeps of the same second, {rounds} rounds: each in a directory of its own")
