"""An interrupted run is resumed, and ends in the bytes that it would have had."""

import fcntl
import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Bnexp, Tell, Times, scalars

from bnexp.runs.record import find_runs
from bnexp.training import loop as training
from bnexp.training.engine import Stack
from bnexp.training.evaluation import Evaluation, Evaluator
from bnexp.training.pretrained import read_source

NARROW = "arch.hidden=[8]"
WORDS = ("dataset=digits", "steps=60", "eval.first_every=20", "checkpoint.every_seconds=0.001", "compile=false")
SHORT = ("dataset=digits", "steps=2", "eval.first_every=2", "compile=false", NARROW)
SWEPT = ("norm=none,batch", "seed=0,1")
FILES = ("metrics.csv", "checkpoint.safetensors")


class Killed(BaseException):
    """In the place of a SIGKILL: nothing is closed in order."""


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Kill what trains at its n-th update from now on, of which the first one warms up."""
    step, left = Stack.step, [0]

    def counted(stack: Stack, batch: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        step(stack, batch)  # type: ignore[arg-type]

    def at(updates: int) -> None:
        left[0] = updates

    monkeypatch.setattr(Stack, "step", counted)
    return at


@pytest.fixture
def terminate(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """SIGTERM as the n-th evaluation from now on begins."""
    evaluate, left = Evaluator.evaluate, [0]

    def counted(*arguments: Any) -> Evaluation:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    def at(evaluation: int) -> None:
        left[0] = evaluation

    monkeypatch.setattr(Evaluator, "evaluate", counted)
    return at


def same(folder: Path, whole: Path) -> bool:
    assert json.loads((folder / "summary.json").read_text())["status"] in ("finished", "diverged")
    assert not [*folder.glob("resume-*"), *folder.glob("*.part")]
    assert scalars(folder) == scalars(whole)
    return all((folder / name).read_bytes() == (whole / name).read_bytes() for name in FILES)


def narrow(words: tuple[str, ...]) -> tuple[str, ...]:
    """There are as many checkpoints as steps."""
    return words if "arch=convnet" in words else (NARROW, *words)


MADE: dict[tuple[str, ...], Path] = {}  # runs that several tests look at


def train_whole(bnexp: Bnexp, *words: str) -> Path:
    if words not in MADE:
        assert bnexp("train", *WORDS, *narrow(words), "hydra.run.dir=whole").status == 0
        MADE[words] = Path("whole").resolve()
    return MADE[words]


def train_killed(bnexp: Bnexp, *words: str) -> Path:
    with pytest.raises(Killed):
        bnexp("train", *WORDS, *narrow(words), "hydra.run.dir=mine")
    return Path("mine")


def killed_at_30(bnexp: Bnexp, kill: Callable[[int], None]) -> Path:
    name = ("killed at 30",)
    if name not in MADE:
        kill(30)
        MADE[name] = Path(shutil.copytree(train_killed(bnexp), "killed")).resolve()
    kill(0)
    return Path(shutil.copytree(MADE[name], "mine", dirs_exist_ok=True))


@pytest.mark.parametrize(("arch", "norm", "optim"), [("mlp", "noisy_batch", "adam"), ("convnet", "batch", "adam")])
def test_a_killed_run_ends_in_the_same_bytes(
    bnexp: Bnexp, kill: Callable[[int], None], arch: str, norm: str, optim: str
) -> None:
    words = (f"arch={arch}", f"norm={norm}", f"optim={optim}", "optim.schedule=cosine", "threads=1")
    words += ("arch.channels=[4]",) if arch == "convnet" else ()
    whole = train_whole(bnexp, *words)
    kill(34)
    mine = train_killed(bnexp, *words)
    outcome = bnexp("resume", "mine")
    assert (outcome.status, outcome.err) == (0, "")
    assert "mine is finished: 1 run (1 resumed)" in outcome.out
    assert same(mine, whole)


@pytest.mark.parametrize(
    ("number", "words"),
    [(3, ()), (5, ()), (6, ("eval.recalibrate=true",)), (3, ("norm=none", "optim.lr=1e30"))],
    ids=["validation", "test", "recalibrated", "diverged"],
)
def test_an_evaluation_is_given_up_for_a_signal(
    bnexp: Bnexp, terminate: Callable[[int], None], number: int, words: tuple[str, ...]
) -> None:
    whole = train_whole(bnexp, *words)
    terminate(number)
    assert bnexp("train", *WORDS, *narrow(words), "hydra.run.dir=mine").status == 143
    assert json.loads(Path("mine", "summary.json").read_text())["status"] == "interrupted"
    assert bnexp("resume", "mine").status == 0
    assert same(Path("mine"), whole)


def test_a_run_that_keeps_no_weights_is_resumed_like_any_other(bnexp: Bnexp, kill: Callable[[int], None]) -> None:
    whole = train_whole(bnexp)
    kill(30)
    mine = train_killed(bnexp, "checkpoint.keep=none")
    assert [*mine.glob("resume-*.safetensors")]
    kill(0)
    assert bnexp("resume", "mine").status == 0
    assert (mine / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert not [*mine.glob("*.safetensors*")]
    refused = bnexp("train", "dataset=digits", NARROW, "steps=2", "init_from=mine", "hydra.run.dir=next")
    assert (refused.status, "init_from=mine is not allowed: a run without a checkpoint" in refused.err) == (2, True)


def test_an_evaluation_later_than_the_checkpoint_is_made_again(
    bnexp: Bnexp, kill: Callable[[int], None], terminate: Callable[[int], None]
) -> None:
    whole = train_whole(bnexp)
    terminate(3)
    assert bnexp("train", *WORDS, NARROW, "checkpoint.every_seconds=60", "hydra.run.dir=mine").status == 143
    kill(9)  # four of its steps are timed
    with pytest.raises(Killed):
        bnexp("resume", "mine")
    assert "\n40,validation" in Path("mine", "metrics.csv").read_text()
    kill(0)
    assert bnexp("resume", "mine").status == 0
    assert same(Path("mine"), whole)


def test_a_run_killed_again_and_again(bnexp: Bnexp, kill: Callable[[int], None]) -> None:
    whole = train_whole(bnexp)
    kill(8)
    mine = train_killed(bnexp)
    for _ in range(6):
        kill(9)
        with pytest.raises(Killed):
            bnexp("resume", "mine")
    assert bnexp("resume", "mine").status == 0
    assert same(mine, whole)


@pytest.mark.parametrize("steps", [1, 3])
def test_one_killed_before_its_first_checkpoint_begins_anew(
    bnexp: Bnexp, kill: Callable[[int], None], steps: int
) -> None:
    whole = train_whole(bnexp)
    kill(steps)
    mine = train_killed(bnexp, "checkpoint.every_seconds=60")
    assert bnexp("resume", "mine").status == 0
    assert same(mine, whole)


@pytest.mark.parametrize(("how", "damaged"), [("bit", 1), ("empty", 2)])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    bnexp: Bnexp, kill: Callable[[int], None], damaged: int, how: str
) -> None:
    whole, mine = train_whole(bnexp), killed_at_30(bnexp, kill)
    kept = sorted(mine.glob("resume-*.safetensors"))
    assert len(kept) == 2
    for path in kept[-damaged:]:
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content if how == "bit" else b"")
    record = (mine / "run.json").read_bytes()
    assert bnexp("resume", "mine").status == 0
    assert same(mine, whole)
    assert ((mine / "run.json").read_bytes() == record) == (damaged == 1), "the run went on, or began anew"


def test_a_sweep_goes_on_where_it_was(bnexp: Bnexp, kill: Callable[[int], None]) -> None:
    assert bnexp("train", "-m", *WORDS, NARROW, *SWEPT, "hydra.sweep.dir=whole").status == 0
    kill(100)  # in the second run of four
    with pytest.raises(Killed):
        bnexp("train", "-m", *WORDS, NARROW, *SWEPT, "hydra.sweep.dir=mine")
    outcome = bnexp("resume", "mine")
    assert (outcome.status, outcome.err) == (0, "")
    assert "mine is finished: 4 runs (1 finished before, 1 resumed, 2 started)" in outcome.out
    assert [same(Path("mine", run.directory.name), run.directory) for run in find_runs([Path("whole")])] == [True] * 4


# ---- a compare

COMPARED = ("compare.json", "compare.md", "report.html")
COMPARE = ("compare", *SHORT, *SWEPT, "act=relu,tanh", "hydra.sweep.dir=mine")


def arms_of(folder: Path) -> list[tuple[str, str, int]]:
    found = json.loads((folder / "compare.json").read_text())["arms"]
    return [(arm["panel"], arm["arm"], arm["n"]) for arm in found]


def cut_off(bnexp: Bnexp, kill: Callable[[int], None], *words: str) -> None:
    kill(30)  # of 16 to time them, and 3 of each run
    with pytest.raises(Killed):
        bnexp(*COMPARE, *words)
    kill(0)
    assert 0 < sum(run.complete for run in find_runs([Path("mine")])) < 8
    assert not Path("mine/compare.json").exists()


@pytest.mark.usefixtures("no_figures")
def test_a_resumed_compare_ends_with_its_comparison(bnexp: Bnexp, kill: Callable[[int], None]) -> None:
    cut_off(bnexp, kill)
    outcome = bnexp("resume", "mine")
    assert (outcome.status, outcome.err) == (0, "")
    panels = [(f"act={act}", f"norm={norm}", 2) for act in ("relu", "tanh") for norm in ("none", "batch")]
    assert arms_of(Path("mine")) == panels
    assert "mine/report.html" in outcome.out
    before = {name: Path("mine", name).read_bytes() for name in COMPARED}
    for name in COMPARED:
        Path("mine", name).unlink()
    assert bnexp("resume", "mine").status == 0, "of a complete one it is made again"
    assert {name: Path("mine", name).read_bytes() for name in COMPARED} == before


@pytest.mark.usefixtures("no_figures")
def test_a_resumed_compare_is_by_its_own_key(bnexp: Bnexp, kill: Callable[[int], None]) -> None:
    cut_off(bnexp, kill, "by=act")
    assert bnexp("resume", "mine").status == 0
    panels = [(f"norm={norm}", f"act={act}", 2) for norm in ("none", "batch") for act in ("relu", "tanh")]
    assert arms_of(Path("mine")) == panels
    before = {name: Path("mine", name).read_bytes() for name in COMPARED}
    assert bnexp("report", "mine").status == 0
    assert {name: Path("mine", name).read_bytes() for name in COMPARED} == before, "a report has that key too"
    assert bnexp("report", "mine", "by=norm").status == 0
    assert {name: Path("mine", name).read_bytes() for name in COMPARED} == before
    assert Path("mine/compare-norm.json").exists()


@pytest.mark.usefixtures("no_figures")
def test_a_resumed_compare_is_cut_off_again(
    bnexp: Bnexp, kill: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(bnexp, kill)
    evaluate = Evaluator.evaluate

    def terminated(*arguments: Any) -> Evaluation:
        if callable(signal.getsignal(signal.SIGTERM)):  # it trains: the steps that are timed before do not heed it
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Evaluator, "evaluate", terminated)
        assert bnexp("resume", "mine").status == 143
    assert not Path("mine/compare.json").exists()
    assert bnexp("resume", "mine").status == 0
    assert Path("mine/compare.json").exists()


@pytest.mark.usefixtures("no_figures")
def test_a_resumed_compare_of_which_a_run_fails(
    bnexp: Bnexp, kill: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(bnexp, kill)
    train, failures = training.train, [RuntimeError("the sky fell")]

    def failing(*arguments: Any) -> None:
        if failures:  # of the first run alone
            raise failures.pop()
        train(*arguments)

    monkeypatch.setattr(training, "train", failing)
    outcome = bnexp("resume", "mine")
    assert outcome.status == 1
    assert "the sky fell" in outcome.err
    assert sum(n for _, _, n in arms_of(Path("mine"))) == 7
    assert "the sky fell" in Path("mine/compare.md").read_text()
    assert bnexp("resume", "mine").status == 0
    assert sum(n for _, _, n in arms_of(Path("mine"))) == 8


@pytest.mark.usefixtures("no_figures")
def test_what_was_no_compare_is_not_compared(bnexp: Bnexp, kill: Callable[[int], None]) -> None:
    cut_off(bnexp, kill)
    record = json.loads(Path("mine/sweep.json").read_text())
    del record["compare"]  # as before there was that key
    Path("mine/sweep.json").write_text(json.dumps(record))
    assert bnexp("resume", "mine").status == 0
    assert not Path("mine/compare.json").exists()
    assert bnexp("train", "-m", *COMPARE[1:]).status == 0
    assert bnexp("resume", "mine").status == 0
    assert not Path("mine/compare.json").exists()


@pytest.mark.usefixtures("no_figures")
def test_a_compare_stays_one(bnexp: Bnexp) -> None:
    """Also when `train -m` makes it larger; and a sweep becomes one that is compared later, by another key besides."""
    words = (*SHORT, "norm=none,batch", "act=relu,tanh", "hydra.sweep.dir=mine")
    assert bnexp("train", "-m", *words, "seed=0").status == 0
    assert bnexp("compare", *words, "seed=0", "by=act").status == 0
    assert bnexp("train", "-m", *words, "seed=0,1").status == 0
    first = Path("mine/compare.json").read_bytes()
    assert bnexp("resume", "mine").status == 0
    assert {(arm, n) for _, arm, n in arms_of(Path("mine"))} == {("act=relu", 2), ("act=tanh", 2)}
    grown = Path("mine/compare.json").read_bytes()
    assert grown != first
    assert bnexp("compare", *words, "seed=0,1", "by=norm").status == 0
    assert Path("mine/compare.json").read_bytes() == grown
    assert Path("mine/compare-norm.json").exists()


def test_what_is_finished_stays_as_it_is(bnexp: Bnexp) -> None:
    whole = train_whole(bnexp)
    before = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    outcome = bnexp("resume", str(whole))
    assert outcome.status == 0
    assert "whole is finished: no run remains" in outcome.out
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir() if path.name != ".lock"} == {
        path: at for path, at in before.items() if path.name != ".lock"
    }


def test_the_same_command_goes_on_and_says_what_is_finished(bnexp: Bnexp, kill: Callable[[int], None]) -> None:
    """As a cluster types it again for a job that it has preempted."""
    whole, mine = train_whole(bnexp), killed_at_30(bnexp, kill)
    assert bnexp("train", *WORDS, NARROW, "hydra.run.dir=mine").status == 0
    assert same(mine, whole)
    assert "mine is finished" in bnexp("train", *WORDS, NARROW, "hydra.run.dir=mine").out


def test_a_sweep_grows_by_its_command_with_more_values(bnexp: Bnexp) -> None:
    words = ("train", "-m", *SHORT, "norm=none,batch", "hydra.sweep.dir=mine")
    assert bnexp(*words, "seed=0").status == 0
    before = {path: path.stat().st_mtime_ns for path in Path("mine").glob("*/run.json")}
    assert bnexp(*words, "seed=0,1").status == 0
    assert len(find_runs([Path("mine")])) == 4
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert bnexp(*words, "seed=1").status == 2, "it holds others"


def test_a_sweep_whose_runs_were_cut_off_grows_once_they_are_resumed(bnexp: Bnexp, kill: Callable[[int], None]) -> None:
    """With more values its directories have other names, and what had begun would begin anew."""
    words = ("train", "-m", *SHORT, "norm=none,batch", "hydra.sweep.dir=mine")
    kill(10)  # 4 of each to time it, 1 to warm up
    with pytest.raises(Killed):
        bnexp(*words, "seed=0")
    outcome = bnexp(*words, "seed=0,1")
    assert outcome.status == 2
    assert "was interrupted and is norm=none,seed=0 in this sweep: bnexp resume mine first" in outcome.err
    assert bnexp("resume", "mine").status == 0
    assert bnexp(*words, "seed=0,1").status == 0
    assert len(find_runs([Path("mine")])) == 4


@pytest.mark.usefixtures("no_figures")
def test_a_sweep_that_has_grown_is_in_the_order_of_its_last_command(bnexp: Bnexp) -> None:
    words = (*SHORT, "seed=0,1", "hydra.sweep.dir=mine")
    assert bnexp("train", "-m", "norm=batch", *words).status == 0
    assert bnexp("compare", "norm=none,batch", *words).status == 0
    assert [run.config["norm"]["name"] for run in find_runs([Path("mine")])] == ["none", "none", "batch", "batch"]
    arms = json.loads(Path("mine/compare.json").read_text())["arms"]
    assert [(arm["arm"], arm["control"]) for arm in arms] == [("norm=none", True), ("norm=batch", False)]


@pytest.mark.parametrize("name", ["${hydra:job.num}", "run_${hydra:job.num}"])
def test_numbered_runs_do_not_give_way_to_others(bnexp: Bnexp, name: str) -> None:
    """Numbers shift as a sweep grows."""
    words = ("train", "-m", *SHORT, "norm=none,batch", "hydra.sweep.dir=mine", f"hydra.sweep.subdir='{name}'")
    assert bnexp(*words, "seed=0").status == 0
    assert bnexp(*words, "seed=0").status == 0, "the same again"
    before = {path: path.read_bytes() for path in Path("mine").glob("*/run.json")}
    outcome = bnexp(*words, "seed=0,1")
    assert outcome.status == 2
    assert "mine names its runs by number, and these have others: choose another directory" in outcome.err
    assert {path: path.read_bytes() for path in Path("mine").glob("*/run.json")} == before


def test_runs_that_would_share_a_directory_do_not_give_way(bnexp: Bnexp) -> None:
    words = ("train", "-m", *SHORT, "seed=0,1", "hydra.sweep.dir=mine", "hydra.sweep.subdir=same")
    for _ in range(2):
        assert bnexp(*words).status == 1
        [run] = find_runs([Path("mine")])
        assert (run.seed, run.summary["status"]) == (0, "finished")


def test_runs_with_other_data_are_refused(bnexp: Bnexp) -> None:
    words = ("train", "-m", *SHORT, "norm=none,batch", "hydra.sweep.dir=mine")
    assert bnexp(*words, "seed=0").status == 0
    path = Path("mine/norm=none/run.json")
    record = json.loads(path.read_text())
    record["dataset"]["sha256"] = "0" * 64
    path.write_text(json.dumps(record))
    outcome = bnexp(*words, "seed=0,1")
    assert (outcome.status, len(outcome.err.splitlines())) == (2, 1)
    assert "mine/norm=none was made with other data: choose another directory" in outcome.err


def test_a_resumed_sweep_names_its_runs_as_hydra_does(bnexp: Bnexp) -> None:
    assert bnexp("train", "-m", *SHORT, "seed=0,1", "norm=none,batch", "hydra.sweep.dir=mine").status == 0
    names = {path.name for path in Path("mine").glob("*=*")}
    shutil.rmtree(Path("mine", "norm=batch,seed=1"))
    assert bnexp("resume", "mine").status == 0
    assert {path.name for path in Path("mine").glob("*=*")} == names


def test_a_damaged_table_is_named(bnexp: Bnexp, kill: Callable[[int], None]) -> None:
    mine = killed_at_30(bnexp, kill)
    content = (mine / "metrics.csv").read_bytes()
    for whole, damaged in (
        (b"\n0,", b"\n\0,"),
        (b"validation,2", b"validation,x"),
        (b"step,", b"stop,"),
        (b"n,2", b"n2"),
    ):
        (mine / "metrics.csv").write_bytes(content.replace(whole, damaged, 1))
        outcome = bnexp("resume", "mine")
        assert (outcome.status, len(outcome.err.splitlines())) == (1, 1)
        assert "mine/metrics.csv: is damaged: the run starts anew once its folder is removed" in outcome.err


def test_one_owner_a_directory(bnexp: Bnexp, kill: Callable[[int], None]) -> None:
    mine = killed_at_30(bnexp, kill)
    with (mine / ".lock").open("a+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        outcome = bnexp("resume", "mine")
    assert outcome.status == 2
    assert "mine is in use: process" in outcome.err
    assert bnexp("resume", "mine").status == 0


def test_other_versions_are_refused(bnexp: Bnexp, kill: Callable[[int], None]) -> None:
    mine = killed_at_30(bnexp, kill)
    record = json.loads((mine / "run.json").read_text())
    record["packages"]["torch"] = "1.0"
    (mine / "run.json").write_text(json.dumps(record))
    outcome = bnexp("resume", "mine")
    assert outcome.status == 2
    assert "mine was made by" in outcome.err
    assert "torch 1.0" in outcome.err
    before = {path: path.read_bytes() for path in mine.iterdir() if path.is_file()}
    assert bnexp("train", *record["overrides"], "hydra.run.dir=mine").status == 2, "by its own command as well"
    assert {path: path.read_bytes() for path in mine.iterdir() if path.is_file()} == before


def sweep_of(config: object, **settings: object) -> str:
    job = {"config": config, "words": [], "overrides": []}
    return json.dumps({"executor": {"name": "processes", "workers": "auto", **settings}, "jobs": [job]})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "sweep.json cannot be read"),
        ("{}", "sweep.json cannot be read"),
        ("\x00", "sweep.json cannot be read"),
        (sweep_of({}, workers=-1), "workers=-1 is not allowed"),
        (sweep_of({}, max_stack="all"), "max_stack=all is not allowed"),
        (sweep_of({}, name="moon"), "executor=moon is not allowed"),
        (sweep_of({"seed": "${oc.env:HOME}"}), "${…}"),
        (sweep_of("seed: 1"), "is no table"),
        (sweep_of({"_target_": "os.system"}), "_target_"),
        (sweep_of({"seed": -1}), "seed=-1 is not allowed"),
        (sweep_of({}, cluster=3), "executor.cluster is a key that"),
        (sweep_of({"optim": {"lr": 10**400}}), "sweep.json cannot be read"),
        (sweep_of({"seed": -(10**400)}), "sweep.json cannot be read"),
        (sweep_of({}, workers=10**4000), "sweep.json cannot be read"),
        (sweep_of({"optim": {"lr": float("inf")}}), "sweep.json cannot be read"),
        ("[" * 100_000, "sweep.json cannot be read"),
    ],
)
def test_a_sweeps_record_that_is_off(bnexp: Bnexp, content: str, says: str) -> None:
    Path("mine").mkdir()
    Path("mine/sweep.json").write_text(content)
    outcome = bnexp("resume", "mine")
    assert outcome.status == 2
    assert says in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_a_directory_without_a_run(bnexp: Bnexp) -> None:
    Path("mine").mkdir()
    outcome = bnexp("resume", "mine")
    assert outcome.status == 2
    assert "mine holds neither a run nor a sweep" in outcome.err
    shutil.rmtree("mine")
    assert bnexp("resume", "mine").status == 2
    assert bnexp("resume").status == 2


# ---- one cause, one status

FACTS: dict[str, object] = {
    "device": "another",
    "threads": 7,
    "processes": 3,
    "compiled": True,
    "config_sha256": "0" * 64,
}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("sweep", [False, True], ids=["run", "sweep"])
def test_what_would_make_another_curve_is_refused_by_either_way(bnexp: Bnexp, sweep: bool) -> None:
    """Before anything is trained, by `resume` and by the command typed again."""
    words = ("-m", *SHORT, "seed=0,1", "hydra.sweep.dir=mine") if sweep else (*SHORT, "hydra.run.dir=mine")
    assert bnexp("train", *words).status == 0
    run = Path("mine/seed=1") if sweep else Path("mine")
    for name in ("summary.json", "checkpoint.safetensors"):
        (run / name).unlink()
    record = json.loads((run / "run.json").read_text())
    others = [record | {name: value} for name, value in FACTS.items()]
    others += [record | {"dataset": record["dataset"] | {"sha256": "0" * 64}}, record | {"dataset": {}}]
    others += [record | {"packages": record["packages"] | {name: "1.0"}} for name in ("torch", "bnexp")]
    others.append(record | {"config": record["config"] | {"seed": 5}})
    for other in others:
        (run / "run.json").write_text(json.dumps(other))
        before = contents(Path("mine"))
        for command in (("resume", "mine"), ("train", *words)):
            outcome = bnexp(*command)
            assert (outcome.status, len(outcome.err.splitlines())) == (2, 1), (command, outcome)
            assert contents(Path("mine")) == before
    (run / "run.json").write_text(json.dumps(record))
    for command in (("resume", "mine"), ("train", *words)):
        with (run / ".lock").open("a+") as other_process:
            fcntl.flock(other_process, fcntl.LOCK_EX)
            assert bnexp(*command).status == 2, command
    assert bnexp("resume", "mine").status == 0


def test_a_start_that_has_changed_is_refused_by_either_way(bnexp: Bnexp) -> None:
    assert bnexp("train", *SHORT, "hydra.run.dir=source").status == 0
    assert bnexp("train", *SHORT, "seed=1", "hydra.run.dir=other").status == 0
    words = (*SHORT, "seed=2", "init_from=source", "hydra.run.dir=mine")
    assert bnexp("train", *words).status == 0
    for name in ("summary.json", "checkpoint.safetensors"):
        Path("mine", name).unlink()
    Path("source").rename("before")
    for place in (None, "other"):
        if place:
            Path(place).rename("source")
        read_source.cache_clear()
        before = contents(Path("mine"))
        for command in (("resume", "mine"), ("train", *words)):
            outcome = bnexp(*command)
            assert (outcome.status, len(outcome.err.splitlines())) == (2, 1), (place, command)
            assert contents(Path("mine")) == before


HUGE = [10**400, -(10**400), 2**63, 1e308, True, None, [], {}, "", "x", "\0", [[[]]], {"a": {"b": 1}}, 1.5, "9" * 5000]
ODD = [*HUGE, float("nan"), float("inf"), -1, 0, "${x}", "\ud800", [1, 2, 3]]


def places_in(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([path] if path else []), *(place for key, part in parts for place in places_in(part, (*path, key)))]


@pytest.mark.faults
@pytest.mark.usefixtures("no_figures")
def test_records_with_odd_values(bnexp: Bnexp, times: Times, tell: Tell) -> None:
    """In a sweep of which one run was interrupted: refused in a line, read as none, or of no consequence."""
    assert bnexp("train", "-m", *SHORT, "norm=none,batch", "hydra.sweep.dir=whole").status == 0
    chance, count, statuses = random.Random(0), times(50), list[int]()
    for number in range(count):
        shutil.copytree("whole", "mine")
        for name in ("summary.json", "checkpoint.safetensors") if number % 2 else ():
            Path("mine/norm=none", name).unlink()
        file = Path("mine", chance.choice(["sweep.json", "norm=none/run.json", "norm=batch/summary.json"]))
        record = json.loads(file.read_text())
        *parents, key = chance.choice(places_in(record))
        table = record
        for parent in parents:
            table = table[parent]
        table[key] = chance.choice(ODD)
        file.write_text(json.dumps(record))
        for command in ("report", "resume", "probe"):
            outcome = bnexp(command, "mine")
            assert outcome.status in (0, 2), (command, file, parents, key, table[key], outcome)
            assert "Traceback" not in outcome.out + outcome.err
            statuses.append(outcome.status)
        shutil.rmtree("mine")
    refused = statuses.count(2)
    tell(f"{count} records with an odd value, read by report, resume and probe: {refused} refusals, no failed run")
