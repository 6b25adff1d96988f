"""What may happen to runs, many times over: kills, damage, full disks, others in the same directory, NaN.

`make test` does a tenth of it; `make test-faults` all of it (--faults=1), and writes results/reliability.md.
"""

import errno
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from children import await_end_of_group, children_of, end_of, in_child, kill, lead_forks, start_child
from conftest import Tell, Times

from bnexp import files, launch
from bnexp.engine import Stack
from bnexp.runs import find_runs
from bnexp.storage import DamagedFileError, load_tensors

COMMON = ("train", "dataset=digits", "steps=80", "eval.first_every=20", "checkpoint.every_seconds=0.02", "threads=1")
NETWORKS = [
    (f"arch={arch}", f"norm={norm}", f"optim={optim}")
    for arch in ("mlp", "convnet")
    for norm in ("none", "batch")
    for optim in ("sgd", "adam")
]
pytestmark = pytest.mark.faults


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


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


def test_kills_at_random_moments_and_within_a_save(times: Times, tell: Tell) -> None:
    chance, same, killed = random.Random(0), 0, 0
    for number in range(count := times(100)):
        expected, seconds = whole(number)
        words = (*network(number), "hydra.run.dir=mine")
        if number % 10 < 3:
            status = in_child(words, die_at_sync(chance.randint(1, 24)))
        else:
            pid = start_child(words)
            time.sleep(chance.uniform(0, seconds))
            kill(pid, signal.SIGKILL)
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
    tell(f"SIGKILL at a random moment or within a save, resumed: {same} of {count} the same bytes")
    assert same == count
    assert killed >= count / 2


def test_one_run_killed_twenty_times(times: Times, tell: Tell) -> None:
    chance = random.Random(1)
    expected, seconds = whole(3)
    for number in range(count := times(20)):
        pid = start_child((*network(3), "hydra.run.dir=mine") if not number else ("resume", "mine"))
        time.sleep(chance.uniform(0.1, seconds / 3))
        kill(pid, signal.SIGKILL)
        end_of(pid)
    assert in_child((*network(3), "hydra.run.dir=mine")) == 0
    tell(f"one run killed {count} times: the same bytes")
    assert files_of("mine") == expected


def test_bit_flips_and_truncations(times: Times, tell: Tell) -> None:
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
    tell(f"{flips} bit flips and {cuts} truncations of a checkpoint: {found} detected")
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
def test_a_write_that_fails(times: Times, tell: Tell, code: int) -> None:
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
    tell(f"{name} at a flush or a rename: {failed} of {tried} runs stopped; same bytes in the end")
    assert failed
    assert "Traceback" not in Path("said").read_text()


def test_starts_in_one_directory(times: Times, tell: Tell) -> None:
    for _ in range(rounds := times(50)):
        pids = [start_child((*COMMON, "steps=60", f"seed={seed}", "hydra.run.dir=mine")) for seed in range(8)]
        ends = [end_of(pid) for pid in pids]
        assert sorted(ends) == [0, *[2] * 7]
        [run_there] = find_runs([Path("mine")])
        assert run_there.seed == ends.index(0)
        assert f"seed: {run_there.seed}" in Path("mine/.hydra/config.yaml").read_text()
        assert run_there.summary["status"] == "finished"
        shutil.rmtree("mine")
    tell(f"8 starts at once in one directory, {rounds} rounds: one owner each, no run mixed")


def test_sweeps_of_the_same_second(times: Times, tell: Tell) -> None:
    for _ in range(rounds := times(50)):
        pids = [start_child((*COMMON, "steps=2", "-m", f"seed={seed},{seed + 8}")) for seed in range(8)]
        assert [end_of(pid) for pid in pids] == [0] * 8
        found = [sorted(one.seed for one in find_runs([folder])) for folder in Path("results/sweeps").iterdir()]
        assert sorted(found) == [[seed, seed + 8] for seed in range(8)]
        shutil.rmtree("results")
    tell(f"8 sweeps of the same second, {rounds} rounds: each in a directory of its own")


# ---- sweeps

SWEEP = (*COMMON, "-m", "norm=none,batch", "seed=range(12)", "steps=20", "eval.first_every=10", "arch.hidden=[16]")
ON_ONE = ("hydra.launcher.workers=1", "hydra.launcher.max_stack=6")
ON_TWO = ("hydra.launcher.workers=2", "hydra.launcher.max_stack=3")


def files_of_sweep(folder: str) -> dict[str, list[bytes]]:
    return {path.parent.name: files_of(str(path.parent)) for path in Path(folder).glob("*/run.json")}


def kill_one(pid: int) -> None:
    """One of a sweep's workers, where it has some already."""
    for worker in random.Random(pid).sample(found := children_of(pid), min(1, len(found))):
        kill(worker, signal.SIGKILL)


def kill_all(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    await_end_of_group(pid)


@pytest.mark.parametrize("victim", [kill_one, kill_all], ids=["a worker", "the process group"])
def test_kills_within_a_sweep(times: Times, tell: Tell, victim: Callable[[int], None]) -> None:
    chance, same, began = random.Random(3), 0, time.monotonic()
    assert in_child((*SWEEP, *ON_TWO, "hydra.sweep.dir=whole"), lead_forks) == 0
    seconds, expected = time.monotonic() - began, files_of_sweep("whole")
    for _ in range(count := times(50)):
        words = (*SWEEP, *ON_TWO, "hydra.sweep.dir=mine")
        pid = start_child(words, lead_forks)
        time.sleep(chance.uniform(0.1, seconds))
        victim(pid)
        status = end_of(pid)
        if victim is kill_all:
            goes_on = Path("mine", "sweep.json").exists()
            status = in_child(("resume", "mine") if goes_on else words, lead_forks)
        assert status == 0, Path("said").read_text()[-2000:]
        same += files_of_sweep("mine") == expected
        shutil.rmtree("mine")
    what = "a worker" if victim is kill_one else "the process group"
    tell(f"a sweep of {len(expected)} on 2 workers, {what} killed: {same} of {count} the same bytes")
    assert same == count


def test_sigterm(times: Times, tell: Tell) -> None:
    chance, same, slowest = random.Random(4), 0, 0.0
    for number in range(count := times(20)):
        expected, seconds = whole(number)
        pid = start_child((*network(number), "hydra.run.dir=mine"))
        time.sleep(chance.uniform(0.2, 1) * seconds)
        began = time.monotonic()
        kill(pid, signal.SIGTERM)
        status = end_of(pid)
        if status == 143:
            slowest = max(slowest, time.monotonic() - began)
        assert status in (0, 143, -signal.SIGTERM)  # it was done, it closed its run, it hadn't one yet
        assert in_child(("resume", "mine") if status == 143 else (*network(number), "hydra.run.dir=mine")) == 0
        same += files_of("mine") == expected
        shutil.rmtree("mine")
    tell(f"SIGTERM: {same} of {count} resumed to the same bytes; the slowest was gone after {slowest:.2f} s")
    assert same == count


def poison(seeds: list[int], at: int) -> Callable[[], None]:
    """NaN into a parameter of the members with these seeds, before the n-th step."""

    def prepare() -> None:
        lead_forks()
        step, made = Stack.step, WeakKeyDictionary[Stack, int]()  # steps of each stack; the first one warms up

        def poisoned(stack: Stack, batch: Any) -> None:
            made[stack] = made.get(stack, 0) + 1
            for member, config in zip(stack.members, stack.configs, strict=True):
                if made[stack] == at + 1 and config.seed in seeds:
                    next(iter(member.parameters.values())).fill_(float("nan"))
            step(stack, batch)

        Stack.step = poisoned  # type: ignore[method-assign]

    return prepare


def test_nan_in_some_members(times: Times, tell: Tell) -> None:
    chance, exact = random.Random(5), 0
    words = (*COMMON, "-m", "seed=range(6)", "steps=60", "eval.first_every=20", *ON_ONE)
    for number in range(count := times(20)):
        compiled = ("compile=true",) if number % 4 == 3 else ()
        expected = f"whole{len(compiled)}"
        if not Path(expected).exists():
            assert in_child((*words, *compiled, f"hydra.sweep.dir={expected}"), lead_forks) == 0
        struck = chance.sample(range(6), chance.randint(1, 5))
        prepare = poison(struck, chance.randint(1, 19))
        assert in_child((*words, *compiled, "hydra.sweep.dir=mine"), prepare) == 0
        found = find_runs([Path("mine")])
        diverged = {run.seed for run in found if run.summary["status"] == "diverged"}
        others = [run.directory.name for run in found if run.seed not in struck]
        same = all(files_of(f"mine/{name}") == files_of(f"{expected}/{name}") for name in others)
        exact += diverged == set(struck) and len(found) == 6 and same
        shutil.rmtree("mine")
    tell(f"NaN into k of 6 members: in {exact} of {count} these diverge, the others' bytes unchanged")
    assert exact == count


# ---- directories that are damaged

CONTENTS = (b"", b"[]", b"{}", b"null", b'"x"', b"\xff\xfe\x00", b"[" * 100_000, b"step,split\n1,validation\n")


def damage(run: Path, chance: random.Random) -> str:
    """One of a run's files, or all but one, spoiled in a way that is told."""
    path = chance.choice(sorted(path for path in run.iterdir() if path.is_file() and path.name != ".lock"))
    kind = chance.choice(["truncated", "truncated", "truncated", "replaced", "gone", "a folder", "a dangling link"])
    content = path.read_bytes()
    path.unlink()
    if kind == "truncated":
        path.write_bytes(content[: chance.randrange(max(len(content), 1))])
    elif kind == "replaced":
        path.write_bytes(chance.choice(CONTENTS))
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a dangling link":
        path.symlink_to("nowhere")
    return f"{path.name} {kind}"


def test_report_of_damaged_runs(times: Times, tell: Tell) -> None:
    chance, right = random.Random(6), 0
    words = (*COMMON, "-m", "norm=none,batch", "seed=range(3)", "steps=20", "eval.first_every=10", "arch.hidden=[8]")
    assert in_child((*words, "hydra.launcher.workers=1", "hydra.sweep.dir=whole"), lead_forks) == 0
    for _ in range(count := times(50)):
        shutil.copytree("whole", "mine")
        run = chance.choice(find_runs([Path("mine")])).directory
        what = damage(run, chance)
        Path("said").unlink()
        status, said = in_child(("report", "mine")), Path("said").read_text()
        assert status == 0, (what, said)
        arms = {arm["arm"]: arm["n"] for arm in json.loads(Path("mine/compare.json").read_text())["arms"]}
        counted = sum(arms.values())
        assert counted == 6 or (counted == 5 and str(run) in said), (what, said)
        assert "Traceback" not in said, what
        right += 1
        shutil.rmtree("mine")
    tell(f"a run's file truncated, replaced, gone: {right} of {count} reports hold all the others")


# ---- many runs


def watched() -> None:
    """Keep memory and open files after each stack."""
    lead_forks()
    train, levels = launch.train_together, list[tuple[int, int]]()

    def trained(members: Any, display: Any) -> None:
        train(members, display)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        levels.append((pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))))
        Path("levels").write_text(json.dumps(levels))

    launch.train_together = trained


def test_memory_and_open_files_stay_level(times: Times, tell: Tell) -> None:
    count = times(1024)
    words = (*COMMON, "-m", f"seed=range({count})", "steps=2", "eval.first_every=2", "arch.hidden=[8]")
    assert in_child((*words, "hydra.launcher.workers=1", "hydra.launcher.max_stack=8"), watched) == 0
    memory, handles = zip(*json.loads(Path("levels").read_text()), strict=True)
    first = len(memory) // 4
    tell(
        f"a sweep of {count} short runs: {memory[first] / 2**20:.0f} MiB after a quarter, {memory[-1] / 2**20:.0f} in "
        f"the end; {handles[first]} open files, then {handles[-1]}"
    )
    assert max(handles[first:]) <= max(handles[: first + 1])
    assert memory[-1] <= 1.1 * memory[first]
