"""What may happen to runs, many times over: kills, damage, full disks, others in the same directory, NaN.

`make test` does a twentieth of it; `make test-faults` all of it (--faults=1), and writes results/reliability.md.
"""

import errno
import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pytest
from children import (
    await_end_of_group,
    await_that,
    children_of,
    end_of,
    import_everything,
    in_child,
    is_alive,
    kill,
    lead_forks,
    run_here,
    start_child,
)
from conftest import Tell, Times, scalars

from bnexp.runs import files
from bnexp.runs.parse import recorded
from bnexp.runs.record import find_runs
from bnexp.runs.tensors import load_tensors
from bnexp.sweeps import train as stacks
from bnexp.training.checkpoint import newest_checkpoint
from bnexp.training.engine import Stack

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


@dataclass(frozen=True)
class Whole:
    """A run that nothing befell."""

    files: list[bytes]
    series: dict[str, list[tuple[int, str]]]
    seconds: float


@cache
def whole(words: tuple[str, ...]) -> Whole:
    import_everything()
    began = time.monotonic()
    assert in_child((*words, "hydra.run.dir=whole")) == 0
    found = Whole(files_of("whole"), scalars(Path("whole")), time.monotonic() - began)
    shutil.rmtree("whole")
    return found


def is_whole(folder: str, expected: Whole) -> bool:
    """The same bytes, in TensorBoard no step twice and none missing, and nothing beside."""
    assert not [*Path(folder).glob("*.part"), *Path(folder).glob("resume-*")]
    return files_of(folder) == expected.files and scalars(Path(folder)) == expected.series


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
    chance, same, killed, resumed, number = random.Random(0), 0, 0, 0, 0
    count = times(100)
    while killed < count and number < 4 * count:
        expected = whole(network(number))
        words = (*network(number), "hydra.run.dir=mine")
        if number % 10 < 3:
            status = in_child(words, die_at_sync(chance.randint(1, 24)))
        else:
            pid = start_child(words)
            time.sleep(chance.uniform(0, expected.seconds))
            kill(pid, signal.SIGKILL)
            status = end_of(pid)
        killed += status == -signal.SIGKILL
        if Path("mine", "run.json").exists():
            resumed += status == -signal.SIGKILL
            assert run_here(("resume", "mine")) == 0
        else:
            shutil.rmtree("mine", ignore_errors=True)
            assert run_here(words) == 0
        same += is_whole("mine", expected)
        number += 1
        shutil.rmtree("mine")
    tell(
        f"{number} runs, SIGKILL at a random moment or within a save: {killed} died, {resumed} of them once begun; "
        f"{same} ended in the same bytes"
    )
    assert same == number
    assert killed == count
    assert resumed >= count / 5


def test_one_run_killed_twenty_times(times: Times, tell: Tell) -> None:
    """With a save at each step, of which every life makes one at least."""
    longer = (*network(3), "steps=200")
    chance, expected, steps = random.Random(1), whole(longer), list[int]()
    words = (*longer, "checkpoint.every_seconds=0.001", "hydra.run.dir=mine")
    for number in range(count := times(20)):
        assert in_child(("resume", "mine") if number else words, die_at_sync(chance.randint(8, 14))) == -signal.SIGKILL
        steps.append(max(step_of(path.with_suffix("")) for path in Path("mine").glob("resume-*.sha256")))
    assert steps == sorted({*steps}), "each went on from the last"
    assert in_child((*longer, "hydra.run.dir=mine")) == 0
    tell(f"one run killed {count} times: the same bytes")
    assert is_whole("mine", expected)


def test_bit_flips_and_truncations(times: Times, tell: Tell) -> None:
    chance, found, words = random.Random(2), 0, (*network(1), "checkpoint.every_seconds=0.001", "hydra.run.dir=mine")
    assert in_child(words, die_at_sync(2 + 3 * 4 + 1)) == -signal.SIGKILL  # the record, three checkpoints, a fourth
    before, path = sorted(Path("mine").glob("resume-*.safetensors"))
    beside = path.with_name(f"{path.name}.sha256")
    contents = {file: file.read_bytes() for file in (path, beside)}
    config = recorded(json.loads(Path("mine/run.json").read_text())["config"])
    shapes = {name: tensor.shape for name, tensor in load_tensors(path).items()}
    assert newest_checkpoint(Path("mine"), config, shapes).step == step_of(path) > step_of(before)
    flips, cuts = times(1000), times(200)
    for number in range(flips + cuts):
        file = path if number % 10 else beside
        damaged = bytearray(contents[file][:65] if file == beside else contents[file])
        if number < flips:
            damaged[chance.randrange(len(damaged) - (file == beside))] ^= 1 << chance.randrange(8)
        else:
            del damaged[chance.choice([0, chance.randrange(len(damaged) - 1)]) :]
        file.write_bytes(damaged)
        found += newest_checkpoint(Path("mine"), config, shapes).step == step_of(before)
        file.write_bytes(contents[file])
    tell(f"{flips} bit flips and {cuts} truncations of a checkpoint: {found} detected, and the one before taken")
    assert found == flips + cuts


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("resume-"))


def failing(operation: str, number: int, code: int) -> Callable[[], None]:
    """The n-th of these fails, as on a full disk, with a permission lost, on a broken disk."""

    def prepare() -> None:
        real: Any = getattr(os, operation)
        left = [number]

        def fails(*arguments: Any, **settings: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise OSError(code, os.strerror(code))
            return real(*arguments, **settings)

        setattr(os, operation, fails)

    return prepare


def too_large(size: int) -> Callable[[], None]:
    """Whatever writes a file beyond this size fails there: tables, TensorBoard's thread, the checkpoint's library."""

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    return prepare


def outlive(prepare: Callable[[], None], network: tuple[str, ...]) -> bool:
    """A run that fails, or doesn't, then its command again, which ends as if nothing had been; whether it failed."""
    expected, words = whole(network), (*network, "hydra.run.dir=mine")
    Path("said").unlink(missing_ok=True)
    status, said = in_child(words, prepare), Path("said").read_text()
    assert status in (0, 1), said
    assert ("mine" in said.splitlines()[-1]) or status == 0, said
    assert "Traceback" not in said
    assert not [*Path("mine").glob("*.part")]
    assert run_here(words) == 0
    assert is_whole("mine", expected)
    shutil.rmtree("mine")
    return status == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_flush_or_a_rename_that_fails(times: Times, tell: Tell, code: int) -> None:
    points = [(operation, number) for operation in ("fsync", "replace") for number in range(1, 21)]
    tried = random.Random(code).sample(points, times(len(points)))
    failed = sum(outlive(failing(operation, number, code), network(1)) for operation, number in tried)
    name = errno.errorcode[code]
    tell(f"{name} at a flush or a rename: {failed} of {len(tried)} runs stopped and said where; same bytes in the end")
    assert failed >= len(tried) / 2


def test_a_write_that_fails(times: Times, tell: Tell) -> None:
    """Hydra's files are smaller; with few checkpoints the tables and TensorBoard's file get there first."""
    chance, failed = random.Random(7), 0
    for number in range(count := times(60)):
        often = "0.02" if number % 2 else "60"
        words = (*network(1), "steps=40", "eval.first_every=1", f"checkpoint.every_seconds={often}")
        failed += outlive(too_large(round(16_000 * 2 ** chance.random())), words)
    tell(f"a write that fails in the middle: {failed} of {count} runs stopped and said where; same bytes in the end")
    assert failed == count


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
    many = min(8, times(40))
    for _ in range(rounds := times(50)):
        pids = [start_child((*COMMON, "steps=2", "-m", f"seed={seed}")) for seed in range(many)]
        assert [end_of(pid) for pid in pids] == [0] * many
        found = [[one.seed for one in find_runs([folder])] for folder in Path("results/sweeps").iterdir()]
        assert sorted(found) == [[seed] for seed in range(many)]
        shutil.rmtree("results")
    tell(f"{many} sweeps of the same second, {rounds} rounds: each in a directory of its own")


# ---- sweeps

SWEEP = (*COMMON, "-m", "norm=none,batch", "steps=20", "eval.first_every=10", "arch.hidden=[16]")
ON_TWO = ("executor.workers=2", "executor.max_stack=3")


def files_of_sweep(folder: str) -> dict[str, list[bytes]]:
    return {path.parent.name: files_of(str(path.parent)) for path in Path(folder).glob("*/run.json")}


@cache
def whole_sweep(words: tuple[str, ...]) -> tuple[dict[str, list[bytes]], float]:
    """Files of a sweep that nothing befell, and the seconds that it takes once under way; of compiled runs, in stacks
    of three.
    """
    pid = start_child((*words, "hydra.sweep.dir=whole"), lead_forks)
    await_that(lambda: is_under_way("whole", words, pid), pid)
    began = time.monotonic()
    assert end_of(pid) == 0
    seconds = time.monotonic() - began
    stacks = {run.record["stack"] for run in find_runs([Path("whole")])}
    assert stacks == ({3} if "compile=true" in words else {1})
    found = files_of_sweep("whole"), seconds
    shutil.rmtree("whole")
    return found


def is_under_way(folder: str, words: tuple[str, ...], pid: int) -> bool:
    """Its workers are there; of a compiled sweep, with a stack of three each that is compiled."""
    if "compile=true" in words:
        return [has_begun(path) for path in Path(folder).glob("*/metrics.csv")].count(True) >= 6
    return bool(children_of(pid))


def has_begun(table: Path) -> bool:
    """Its network is compiled and was evaluated."""
    return "\n0,validation" in table.read_text()


def kill_one(pid: int) -> bool:
    """One of a sweep's workers; whether it has some still."""
    found = children_of(pid)
    for worker in random.Random(pid).sample(found, min(1, len(found))):
        kill(worker, signal.SIGKILL)
    return bool(found)


def kill_all(pid: int) -> bool:
    """Its whole group; whether it was there still."""
    there = is_alive(pid)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    await_end_of_group(pid)
    return there


@pytest.mark.parametrize("victim", [kill_one, kill_all], ids=["a worker", "the process group"])
def test_kills_within_a_sweep(times: Times, tell: Tell, victim: Callable[[int], bool]) -> None:
    """A fifth of them compiled, in stacks of three: few only where the group is killed, since a dead worker's stack is
    compiled anew in halves.
    """
    chance, same, killed, seeds = random.Random(3), 0, 0, min(12, times(30))
    for number in range(count := times(50)):
        compiled = number % 5 == 4 and (victim is kill_all or count == 50)
        swept = (*SWEEP, f"compile={str(compiled).lower()}", f"seed=range({seeds})", *ON_TWO)
        expected, seconds = whole_sweep(swept)
        words = (*swept, "hydra.sweep.dir=mine")
        pid = start_child(words, lead_forks)
        await_that(lambda: is_under_way("mine", words, pid), pid)  # noqa: B023 - at once
        time.sleep(chance.uniform(0, 0.6 * seconds))
        hit = victim(pid)
        status = end_of(pid)
        killed += hit and status in (0, -signal.SIGKILL)
        if status:
            assert victim is kill_all, Path("said").read_text()[-2000:]
            goes_on = Path("mine", "sweep.json").exists()
            assert in_child(("resume", "mine") if goes_on else words, lead_forks) == 0, Path("said").read_text()[-2000:]
        same += files_of_sweep("mine") == expected
        shutil.rmtree("mine")
    what = "a worker" if victim is kill_one else "the process group"
    tell(f"{count} sweeps of {2 * seeds} on 2 workers, {what} of {killed} killed: {same} the same bytes")
    assert same == count
    assert killed >= count / 2


def test_sigterm(times: Times, tell: Tell) -> None:
    chance, same, stopped, slowest = random.Random(4), 0, 0, 0.0
    for number in range(count := times(20)):
        words = (*network(number), "steps=300")
        expected = whole(words)
        pid = start_child((*words, "hydra.run.dir=mine"))
        await_that(lambda: [*Path("mine").glob("resume-*")], pid)
        time.sleep(chance.uniform(0, 0.3) * expected.seconds)
        began = time.monotonic()
        kill(pid, signal.SIGTERM)
        status = end_of(pid)
        assert status in (0, 143)
        if status == 143:
            stopped, slowest = stopped + 1, max(slowest, time.monotonic() - began)
        assert run_here(("resume", "mine")) == 0
        same += is_whole("mine", expected)
        shutil.rmtree("mine")
    tell(f"SIGTERM: {stopped} of {count} stopped, the slowest after {slowest:.2f} s; {same} ended in the same bytes")
    assert same == count
    assert stopped >= count / 2
    assert slowest < 5


def test_sigterm_to_a_sweeps_process_group(times: Times, tell: Tell) -> None:
    """As a cluster ends a job: its workers are told twice, by the cluster and by their parent."""
    words = (*SWEEP, "seed=range(3)", "compile=true", *ON_TWO, "checkpoint.every_seconds=60")
    words += ("steps=1000000", "eval.first_until=0", "eval.every=1000000")
    for _ in range(count := times(10)):
        pid = start_child((*words, "hydra.sweep.dir=mine"), lead_forks)
        await_that(lambda: [has_begun(path) for path in Path("mine").glob("*/metrics.csv")].count(True) == 6, pid)
        began = time.monotonic()
        os.killpg(pid, signal.SIGTERM)
        assert end_of(pid) == 143
        assert time.monotonic() - began < 5
        found = find_runs([Path("mine")])
        assert [run.summary["status"] for run in found] == ["interrupted"] * 6
        assert all([*run.directory.glob("resume-*.safetensors")] for run in found), "each at the step where it was"
        shutil.rmtree("mine")
    tell(f"SIGTERM to a sweep's whole process group: in {count} of {count} every run had its checkpoint within 5 s")


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
    chance, exact, size = random.Random(5), 0, min(6, times(30))
    words = (*COMMON, "-m", f"seed=range({size})", "steps=60", "eval.first_every=20", "arch.hidden=[16]")
    words += ("compile=true", "executor.workers=1", f"executor.max_stack={size}")
    assert in_child((*words, "hydra.sweep.dir=whole"), lead_forks) == 0
    assert {run.record["stack"] for run in find_runs([Path("whole")])} == {size}
    for _ in range(count := times(20)):
        struck = chance.sample(range(size), chance.randint(1, size - 1))
        prepare = poison(struck, chance.randint(1, 19))
        assert in_child((*words, "hydra.sweep.dir=mine"), prepare) == 0
        found = find_runs([Path("mine")])
        diverged = {run.seed for run in found if run.summary["status"] == "diverged"}
        others = [run.directory.name for run in found if run.seed not in struck]
        same = all(files_of(f"mine/{name}") == files_of(f"whole/{name}") for name in others)
        exact += diverged == set(struck) and len(found) == size and same
        shutil.rmtree("mine")
    tell(f"NaN into k of a stack of {size}: in {exact} of {count} these diverge, the others' bytes unchanged")
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


def test_report_of_damaged_runs(times: Times, tell: Tell, request: pytest.FixtureRequest) -> None:
    """In full with the figures, which show whole runs alone."""
    if times(10) < 10:
        request.getfixturevalue("no_figures")
    chance, right = random.Random(6), 0
    words = (*COMMON, "-m", "norm=none,batch", "seed=range(3)", "steps=20", "eval.first_every=10", "arch.hidden=[8]")
    assert in_child((*words, "executor.workers=1", "hydra.sweep.dir=whole"), lead_forks) == 0
    for _ in range(count := times(50)):
        shutil.copytree("whole", "mine")
        run = chance.choice(find_runs([Path("mine")])).directory
        what = damage(run, chance)
        Path("said").unlink()
        status, said = run_here(("report", "mine")), Path("said").read_text()
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
    train, levels = stacks.train_together, list[tuple[int, int]]()

    def trained(members: Any) -> None:
        train(members)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        levels.append((pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))))
        Path("levels").write_text(json.dumps(levels))

    stacks.train_together = trained


def test_memory_and_open_files_stay_level(times: Times, tell: Tell) -> None:
    count = 8 * times(128)
    words = (*COMMON, "-m", f"seed=range({count})", "steps=2", "eval.first_every=2", "arch.hidden=[16]", "compile=true")
    assert in_child((*words, "executor.workers=1", "executor.max_stack=8"), watched) == 0
    memory, handles = zip(*json.loads(Path("levels").read_text()), strict=True)
    first = len(memory) // 4
    assert len(memory) == count / 8
    tell(
        f"a sweep of {count} short runs in stacks of 8: {memory[first] / 2**20:.0f} MiB after a quarter, "
        f"{memory[-1] / 2**20:.0f} in the end; {handles[first]} open files, then {handles[-1]}"
    )
    assert max(handles[first:]) <= max(handles[: first + 1])
    assert memory[-1] - memory[first] <= 16 * 2**20
