"""Sweeps: how runs become stacks, what a dry run says, what is refused, and that stacks leave what runs alone leave."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Bnexp, restored

import bnexp.sweeps.stacks as bnexp_sweep
from bnexp.cli.compose import configurations
from bnexp.cli.main import run
from bnexp.cli.overrides import conf_dir
from bnexp.runs.config import ArchConfig, ConfigError, DatasetConfig, EvalConfig, RunConfig
from bnexp.runs.console import count, duration, duration_range
from bnexp.runs.directory import Compilation
from bnexp.runs.record import find_runs
from bnexp.sweeps.executor_config import EXECUTOR_KEYS, LARGEST_STACK, ExecutorConfig, parse_executor
from bnexp.sweeps.job import Job
from bnexp.sweeps.run import EXECUTORS
from bnexp.sweeps.stacks import SweepPlan, member_bytes, plan_sweep, stack_key
from bnexp.training.compiler import has_compiler
from bnexp.training.engine import Stack

TRAIN = ("train", "dataset=digits", "device=cpu", "steps=60")
CONFIG = RunConfig(
    dataset=DatasetConfig("digits", validation=200), arch=ArchConfig(hidden=[8]), steps=60, device="cpu", compile=False
)
needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler (g++ or clang++)")


def changed(config: RunConfig, key: str, value: object) -> RunConfig:
    group, _, part = key.rpartition(".")
    changes: dict[str, Any] = {group: replace(getattr(config, group), **{part: value})} if group else {key: value}
    return replace(config, **changes)


def make_jobs(*sizes: int, config: RunConfig = CONFIG) -> list[Job]:
    """Groups of these sizes, each with a batch size of its own."""
    configs = [
        replace(config, batch_size=60 + group, seed=seed) for group, size in enumerate(sizes) for seed in range(size)
    ]
    compilation = Compilation(config.compile is True)
    return [
        Job(n, [], [f"batch_size={c.batch_size}", f"seed={c.seed}"], c, compilation=compilation)
        for n, c in enumerate(configs)
    ]


# ---- stacks


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[RunConfig]:
    """Compiled runs, on a machine whose cache suits stacks of six of them. Nothing is compiled by a plan."""
    compiled = replace(CONFIG, compile=True)
    monkeypatch.setattr(bnexp_sweep, "WORKING_SET", 6.5 * member_bytes(compiled))
    with restored():
        yield compiled


def sizes_of(plan: SweepPlan) -> dict[int, list[int]]:
    """Batch size → sizes of its stacks."""
    found: dict[int, list[int]] = {}
    for stack in plan.stacks:
        [batch_size] = {job.config.batch_size for job in stack}
        found.setdefault(batch_size, []).append(len(stack))
    return found


@pytest.mark.parametrize("groups", [(1,), (5,), (13,), (40,), (3, 3), (17, 4, 1), (1, 9)])
def test_stacks_are_whole_even_and_enough(small_cache: RunConfig, groups: tuple[int, ...]) -> None:
    jobs = make_jobs(*groups, config=small_cache)
    for workers, max_stack in product([1, 2, 5], [None, 1, 4, 7]):
        plan = plan_sweep(jobs, ExecutorConfig("processes", workers, max_stack), Path(), timed=False)
        assert sorted(job.number for stack in plan.stacks for job in stack) == [job.number for job in jobs]
        for sizes in sizes_of(plan).values():
            assert max(sizes) - min(sizes) <= 1
            assert max(sizes) <= (max_stack or 9)  # six, or the nearest that is even
        assert plan.workers == min(workers, len(plan.stacks))
        assert len(plan.stacks) >= min(workers, len(jobs))


def test_large_members_stack_where_that_is_asked_for(small_cache: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bnexp_sweep, "WORKING_SET", 1)
    jobs = make_jobs(6, config=small_cache)
    assert sizes_of(plan_sweep(jobs, ExecutorConfig(workers=1), Path(), timed=False)) == {60: [1] * 6}
    assert sizes_of(plan_sweep(jobs, ExecutorConfig(workers=1, max_stack=6), Path(), timed=False)) == {60: [6]}


def test_workers_begin_with_different_graphs(small_cache: RunConfig) -> None:
    plan = plan_sweep(make_jobs(12, 12, config=small_cache), ExecutorConfig(workers=2), Path(), timed=False)
    assert [stack[0].config.batch_size for stack in plan.stacks] == [60, 61, 60, 61]


def test_as_many_workers_as_the_hungriest_runs_leave_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bnexp_sweep, "usable_cores", lambda: 8)
    jobs = [replace(job, config=replace(job.config, threads=threads)) for threads in (1, 4) for job in make_jobs(9)]
    for order in (jobs, jobs[::-1]):
        assert plan_sweep(order, ExecutorConfig(), Path(), timed=False).workers == 2


def test_stacks_fill_the_cache(small_cache: RunConfig) -> None:
    jobs = make_jobs(24, config=small_cache)
    assert sizes_of(plan_sweep(jobs, ExecutorConfig(workers=1), Path(), timed=False)) == {60: [6, 6, 6, 6]}
    assert sizes_of(plan_sweep(jobs, ExecutorConfig(workers=1, max_stack=12), Path(), timed=False)) == {60: [12, 12]}


@pytest.mark.parametrize("jobs", [LARGEST_STACK, LARGEST_STACK + 62, 3 * LARGEST_STACK + 1])
def test_no_stack_is_larger_than_was_measured(
    small_cache: RunConfig, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    monkeypatch.setattr(bnexp_sweep, "WORKING_SET", 2**40)
    plan = plan_sweep(make_jobs(jobs, config=small_cache), ExecutorConfig(workers=1), Path(), timed=False)
    assert max(len(stack) for stack in plan.stacks) <= LARGEST_STACK


@pytest.mark.parametrize(
    "config",
    [CONFIG, changed(changed(CONFIG, "arch.name", "convnet"), "arch.channels", [4])],
    ids=["uncompiled", "convnet"],
)
@pytest.mark.parametrize("max_stack", [None, 4])
def test_runs_that_gain_nothing_come_one_by_one(config: RunConfig, max_stack: int | None) -> None:
    with restored():
        plan = plan_sweep(make_jobs(5, config=config), ExecutorConfig("processes", 2, max_stack), Path(), timed=False)
    assert sizes_of(plan) == {60: [1] * 5}
    assert "5 runs: one by one on 2 workers" in str(plan)


@pytest.mark.parametrize(
    ("sizes", "executor", "workers", "seconds", "text"),
    [
        ([12] * 4, "processes", 2, 180, "48 runs: 4 stacks of 12 on 2 workers, about 2 to 6 min"),
        ([4, 5], "processes", 1, 40, "9 runs: 2 stacks of 4 to 5 on 1 worker, about 20 to 80 s"),
        ([3], "inline", 1, 0.1, "3 runs: 1 stack of 3 in this process, about 1 s"),
        ([1, 1], "processes", 2, 86_400, "2 runs: one by one on 2 workers, about 12 h to 2 days"),
        ([2, 1], "slurm", 1, 2, "3 runs: 2 stacks of 1 to 2 as 1 job of slurm, about 1 to 4 s"),
    ],
)
def test_plan_in_words(sizes: list[int], executor: str, workers: int, seconds: float, text: str) -> None:
    jobs = iter(make_jobs(sum(sizes)))
    stacks = [[next(jobs) for _ in range(size)] for size in sizes]
    assert str(SweepPlan(stacks, ExecutorConfig(executor), Path(), workers, seconds)) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.1, "1 s"), (60, "30 s to 2 min"), (3600, "30 min to 2 h")])
def test_a_range_of_durations(seconds: float, text: str) -> None:
    assert duration_range(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1 s"), (89.4, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "2 h"), (129_600, "2 days"), (1e6, "12 days")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_count() -> None:
    assert [count(number, "run") for number in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


# ---- what may share a stack


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 7),
        ("optim.lr", 0.5),
        ("optim.momentum", 0.5),
        ("optim.weight_decay", 0.1),
        ("optim.schedule", "cosine"),
        ("init.std", 0.3),
        ("norm.eps", 0.1),
        ("norm.momentum", 0.5),
    ],
)
def test_numbers_keep_runs_together(key: str, value: object) -> None:
    assert stack_key(changed(CONFIG, key, value), compiled=True) == stack_key(CONFIG, compiled=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset.validation", 300),
        ("dataset.limit", 100),
        ("arch.hidden", [9]),
        ("arch.norm_position", "after"),
        ("act.name", "sigmoid"),
        ("norm.name", "layer"),
        ("norm.affine", False),
        ("batch_size", 61),
        ("steps", 61),
        ("optim.name", "adam"),
        ("precision", "bf16"),
        ("eval.first_every", 51),
        ("eval.first_until", 51),
        ("eval.every", 51),
        ("device", "auto"),
        ("threads", 2),
        ("compile", True),
    ],
)
def test_another_computation_separates(key: str, value: object) -> None:
    assert stack_key(changed(CONFIG, key, value), False) != stack_key(CONFIG, False)


def test_eps_separates_convolutional_runs() -> None:
    convnet = changed(CONFIG, "arch.name", "convnet")
    assert stack_key(changed(convnet, "norm.eps", 0.1), False) != stack_key(convnet, False)
    assert stack_key(replace(convnet, seed=7), False) == stack_key(convnet, False)


@pytest.mark.parametrize(
    ("first_every", "first_until", "every"),
    [(50, 2000, 500), (1, 0, 1), (7, 20, 3), (3, 20, 7), (10, 10, 10), (99, 50, 7), (5, 51, 1000), (13, 1000, 2)],
)
def test_evaluations_are_counted_exactly(first_every: int, first_until: int, every: int) -> None:
    schedule = EvalConfig(first_every, first_until, every)
    for last in (*range(1, 120), 1999, 2000, 2001, 2500, 2501):
        assert schedule.times(last) == sum(schedule.due(step, last) for step in range(last + 1)), last


# ---- dry runs and words that are off


@pytest.mark.parametrize(
    ("words", "shape"),
    [
        (("train", "-m", "seed=range(3)"), "3 runs: one by one in this process"),
        (("train", "-m", "seed=range(3)", "executor.workers=2"), "3 runs: one by one on 2 workers"),
        (("train", "-m", "executor.max_stack=2", "seed=range(3)"), "3 runs: one by one in this process"),
        (("train",), "1 run: one by one in this process"),
        (("compare", "norm=none,batch", "seed=0,1"), "4 runs: one by one in this process"),
    ],
)
def test_dry_run_says_the_plan_and_makes_nothing(
    bnexp: Bnexp, tmp_path: Path, words: tuple[str, ...], shape: str
) -> None:
    outcome = bnexp(*words, *TRAIN[1:], "dry_run=true")
    assert (outcome.status, outcome.err) == (0, "")
    [line] = outcome.out.splitlines()
    assert line.startswith(f"{shape}, about ")
    assert not list(tmp_path.iterdir())


def test_workers_have_the_threads_of_their_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bnexp_sweep, "usable_cores", lambda: 8)
    found = [bnexp_sweep.device_workers(RunConfig(threads=threads, device="cpu")) for threads in ("auto", 3, 16)]
    assert found == [8, 2, 1]


def test_nothing_left_to_do_is_said(bnexp: Bnexp) -> None:
    words = ("train", "-m", "dataset=digits", "seed=0,1", "steps=4", "hydra.sweep.dir=mine")
    assert bnexp(*words).status == 0
    outcome = bnexp(*words, "dry_run=true")
    assert (outcome.status, outcome.out) == (0, "no run remains\n")


def test_dry_run_false_trains(bnexp: Bnexp, tmp_path: Path) -> None:
    assert bnexp(*TRAIN[:3], "steps=1", "dry_run=false").status == 0
    assert len(find_runs([tmp_path])) == 1


HUGE = f"arch.hidden=[{','.join(['65536'] * 40)}]"  # terabytes


@pytest.mark.parametrize("command", ["train -m", "compare"])
@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("dry_run=maybe", ["dry_run=maybe", "true or false"]),
        *((f"executor.workers={value}", ["executor.workers=", "1024"]) for value in (0, -1, 1.5, "x")),
        *((f"executor.workers={value}", ["executor.workers=", "1024"]) for value in ("true", 100000, "[2]")),
        *((f"executor.max_stack={value}", ["executor.max_stack=", "128"]) for value in (0, -3, 129, "x")),
        (HUGE, ["GB of memory", "executor.max_stack", "widths"]),
        ("hydra/launcher=nonsense", ["hydra/launcher=nonsense", "use executor=processes"]),
        ("norm=", ["norm"]),
        ("act=relu,sigmoid,relu", ["has the same run more than once", "norm=none act=relu"]),
        ("seed=range(5,5)", ["seed=range(5,5)", "empty sweep"]),
        ("hydra/sweeper=basic", ["hydra/sweeper=basic", "is not allowed"]),
        ("hydra.sweeper.max_batch_size=2", ["max_batch_size"]),
    ],
)
def test_sweep_that_is_refused(bnexp: Bnexp, tmp_path: Path, command: str, word: str, parts: list[str]) -> None:
    outcome = bnexp(*command.split(), *TRAIN[1:], "norm=none,batch", word)
    assert outcome.status == 2, outcome
    [line] = outcome.err.splitlines()
    for part in parts:
        assert part in line
    assert not outcome.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [0, 129, -1, 2.0, True, "x", [1]])
def test_max_stack_is_a_number_in_range(value: object) -> None:
    with pytest.raises(ConfigError, match=r"executor\.max_stack="):
        parse_executor({"name": "inline", "max_stack": value})
    found = parse_executor({"name": "inline", "max_stack": LARGEST_STACK})
    assert found == ExecutorConfig("inline", None, LARGEST_STACK)
    assert parse_executor(found.as_dict()) == found


# ---- a sweep's directories


ARMS = ("norm=none,batch", "seed=0,1")
NAMES = [f"norm={norm},seed={seed}" for norm in ("none", "batch") for seed in (0, 1)]
WAYS = {
    "two": ("executor.workers=2",),
    "here": (),
    "inline": ("executor=inline",),
}


def test_every_executor_leaves_what_a_run_alone_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sweep by every executor, and one run of it alone."""
    monkeypatch.chdir(tmp_path)
    words = (*TRAIN, "compile=false")
    assert run([*words, "norm=batch", "seed=1", "hydra.run.dir=alone"]) == 0
    for name, executor in WAYS.items():
        assert run([*words, "-m", *ARMS, f"hydra.sweep.dir={name}", *executor]) == 0
        check_files(tmp_path / name, tmp_path / "alone")
        check_records(tmp_path / name, tmp_path / "alone")
        for run_name in NAMES:
            assert result_bytes(tmp_path / "two" / run_name) == result_bytes(tmp_path / name / run_name)
    assert result_bytes(tmp_path / "two" / NAMES[-1]) == result_bytes(tmp_path / "alone")
    for number, name in enumerate(NAMES):
        check_hydras_record(tmp_path / "here" / name, number)
        for file in ("config.yaml", "overrides.yaml"):
            records = [(tmp_path / place / name / ".hydra" / file).read_text() for place in WAYS]
            assert len(set(records)) == 1


def check_hydras_record(folder: Path, number: int) -> None:
    """What Hydra itself writes: the composed configuration, its own part, the overrides."""
    config, hydra, overrides = (
        yaml.safe_load((folder / ".hydra" / f"{name}.yaml").read_text()) for name in ("config", "hydra", "overrides")
    )
    record = json.loads((folder / "run.json").read_text())
    assert overrides == hydra["hydra"]["overrides"]["task"] == record["overrides"]
    for group, value in config.items():
        expected = record["config"][group]
        assert value == ({key: expected[key] for key in value} if isinstance(value, dict) else expected), group
    assert hydra["hydra"]["job"]["num"] == number
    assert hydra["hydra"]["runtime"]["output_dir"] == str(folder)
    assert hydra["hydra"]["runtime"]["choices"]["norm"] == config["norm"]["name"]


def result_bytes(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("metrics.csv", "checkpoint.safetensors")]


def log_lines(folder: Path) -> list[str]:
    return (folder / "bnexp.log").read_text().splitlines()


def files_of(folder: Path) -> set[str]:
    every = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    events = {name for name in every if name.startswith("events.out.tfevents.")}
    assert len(events) == 1
    return every - events


def check_files(sweep: Path, alone: Path) -> None:
    assert {path.name for path in sweep.iterdir() if path.is_dir()} == set(NAMES)
    for name in NAMES:
        assert files_of(sweep / name) == files_of(alone)
    member = sweep / NAMES[-1] / ".hydra"
    assert (member / "config.yaml").read_text() == (alone / ".hydra" / "config.yaml").read_text()
    assert (member / "overrides.yaml").read_text().splitlines()[-2:] == ["- norm=batch", "- seed=1"]


def check_records(sweep: Path, alone: Path) -> None:
    keys = json.loads((alone / "run.json").read_text()).keys()
    for number, name in enumerate(NAMES):
        folder = sweep / name
        record, summary = (json.loads((folder / file).read_text()) for file in ("run.json", "summary.json"))
        assert record.keys() == keys
        assert (record["job"], record["stack"]) == (number, 1)
        assert record["overrides"] == ["dataset=digits", "device=cpu", "steps=60", "compile=False", *name.split(",")]
        assert (summary["status"], summary["steps"]) == ("finished", 60)
        with (folder / "timing.csv").open(newline="") as file:
            assert [int(row["step"]) for row in csv.DictReader(file)] == [0, 50, 60]
        [line] = log_lines(folder)
        assert f"test accuracy {summary['test']['accuracy']:.1%}" in line


# ---- one that fails


def sweep_with_a_file_in_the_way(bnexp: Bnexp, *words: str) -> None:
    """A sweep where the directory of seed=1 can't be made; checks that the run is named and the others finish."""
    Path("s").mkdir()
    Path("s/seed=1").write_text("in the way")
    outcome = bnexp(*TRAIN, "-m", "seed=range(4)", "hydra.sweep.dir=s", *words)
    assert outcome.status == 1, outcome
    [line] = outcome.err.splitlines()
    assert "1 of 4 runs failed: seed=1 (" in line
    assert "s/seed=1: File exists" in line
    found = find_runs([Path("s")])
    assert [(run.seed, run.record["job"], run.summary["status"]) for run in found] == [
        (seed, seed, "finished") for seed in (0, 2, 3)
    ]
    for run_ in found:
        [line] = log_lines(run_.directory)
        assert f"test accuracy {run_.summary['test']['accuracy']:.1%}" in line


def test_a_run_without_a_directory_does_not_stop_the_others(bnexp: Bnexp) -> None:
    sweep_with_a_file_in_the_way(bnexp, "compile=false")


def test_a_run_whose_directory_goes_away_does_not_stop_the_others(
    bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bnexp.training import loop as train  # noqa: PLC0415

    evaluate = train.evaluate

    def removed(member: train.Member, stack: Stack, step: int, *rest: Any) -> None:
        evaluate(member, stack, step, *rest)
        if member.config.seed == 1 and step == 60:
            Path("s/seed=1").rename("away")

    monkeypatch.setattr(train, "evaluate", removed)
    outcome = bnexp(*TRAIN, "-m", "seed=range(3)", "hydra.sweep.dir=s", "compile=false")
    assert outcome.status == 1, outcome
    assert "1 of 3 runs failed: seed=1 (" in outcome.err
    assert "s/seed=1/" in outcome.err
    assert "No such file or directory" in outcome.err
    assert [run.seed for run in find_runs([Path("s")])] == [0, 2]


@needs_compiler
def test_a_member_without_a_directory_does_not_stop_its_stack(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bnexp_sweep, "usable_cores", lambda: 1)  # one stack of all four
    sweep_with_a_file_in_the_way(bnexp, "compile=true", "executor.max_stack=4", "arch.hidden=[16]")
    found = find_runs([Path("s")])
    assert [run.record["stack"] for run in found] == [4] * 3


def test_every_executor_has_its_keys_and_its_file() -> None:
    """One that is registered in one place alone would be known to a part of the program."""
    assert set(EXECUTORS) == set(EXECUTOR_KEYS) == {path.stem for path in conf_dir().glob("executor/*.yaml")}
    for name, keys in EXECUTOR_KEYS.items():
        with configurations() as composer:
            composed = composer.composed((f"executor={name}",)).executor
        assert set(composed) == {"name", *keys}
        assert set(keys) <= set(ExecutorConfig.__dataclass_fields__)


@pytest.mark.parametrize(
    ("content", "status", "text"),
    [
        ("executor: {max_stack: 3}", 0, "3 runs: one by one in this process"),
        ("executor: {workers: 2}", 0, "3 runs: one by one on 2 workers"),
        ("defaults: [override /executor: inline]\nexecutor: {max_stack: 3}", 0, "3 runs: one by one in this process"),
        ("executor: {max_stack: 1000}", 2, "executor.max_stack=1000 is not allowed"),
        ("executor: {speed: 3}", 2, "executor.speed is a key that executor=processes doesn't have"),
        ("executor: {name: moon}", 2, "executor=moon is not allowed: one of processes, inline, slurm, ray"),
    ],
)
def test_a_file_may_choose_the_executor(bnexp: Bnexp, tmp_path: Path, content: str, status: int, text: str) -> None:
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    outcome = bnexp(*TRAIN, "-m", "seed=range(3)", "--config-dir", "own", "experiment=mine", "dry_run=true")
    assert outcome.status == status, outcome
    assert text in outcome.out + outcome.err
