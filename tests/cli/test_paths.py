"""Paths as people have them, the commands that are printed with them, and runs that are resumed from elsewhere."""

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import Bnexp, Tell, Times
from PIL import Image

from bnexp.data.load import _loaded
from bnexp.runs.config import DatasetConfig
from bnexp.runs.record import find_runs
from bnexp.training.evaluation import Evaluation, Evaluator
from bnexp.training.pretrained import read_source

BIN = Path(sys.executable).parent
NAMES = ["müller", "фото", "a#b", "C++ [x]", "a,b", "a=b", "{x}", "it's", 'a"b', "a\\b", "a\\", "$HOME", "a:b", "100%"]
NAMES += [
    " before",
    "behind ",
    "null",
    "2024",
    "007",
    "1e3",
    "true",
    "🙂",
    "${x}",
    "${now:%Y}",
    "'quoted'",
    "choice(a)",
]
NAMES += ["-5", "~mine~", "C:\\x", "[1,2]", "é'\"\\", "b'c,d'", "two\nlines", "\x1b[1m", "tab\t", "not UTF-8 \udce9"]
DIGITS = ("dataset=digits", "steps=1", "eval.first_every=1", "arch.hidden=[2]", "compile=false")
FOLDER = ("dataset=image_folder", "dataset.size=8", "dataset.validation=2", "batch_size=2", "arch.hidden=[2]")
FOLDER += ("steps=2", "eval.first_every=1")


def make_pictures(folder: Path, shade: int = 40) -> Path:
    """An image folder of two classes with four images each in either split."""
    for split in ("train", "test"):
        for name in ("dark", "light"):
            (folder / split / name).mkdir(parents=True)
            for number in range(4):
                Image.new("L", (8, 8), shade + number + 100 * (name == "light")).save(
                    folder / split / name / f"{number}.png"
                )
    return folder


def cut_off(run: Path) -> None:
    """As if it had been killed."""
    for name in ("summary.json", "checkpoint.safetensors"):
        (run / name).unlink()


def record_of(directory: str | Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(Path(directory, "run.json").read_text(encoding="utf-8"))
    return record


# ---- names


def test_what_is_there_has_any_name(bnexp: Bnexp, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "pictures")
    for name in NAMES:
        Path(name).symlink_to(pictures)
        outcome = bnexp("data", "status", "dataset=image_folder", f"dataset.path={name}")
        assert (outcome.status, outcome.err) == (0, "")
        assert " ready " in outcome.out, name


SWEPT = ["müller", "a,b", "'quoted'", "C++ [x]", "${x}", "null", "b'c,d'", "two\nlines", "not UTF-8 \udce9"]


def test_lists_of_what_is_there_are_swept(bnexp: Bnexp, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "pictures")
    for name in SWEPT:
        Path(name).symlink_to(pictures)
    words = ("train", "-m", *FOLDER, f"dataset.path={','.join(SWEPT)}", "hydra.sweep.dir=sweep")
    assert bnexp(*words).status == 0
    runs = find_runs([Path("sweep")])
    assert [run.config["dataset"]["path"] for run in runs] == SWEPT
    assert [run.record["paths"]["dataset.path"] for run in runs] == [str(tmp_path / name) for name in SWEPT]
    assert {run.directory.name for run in runs} == {str(number) for number in range(len(SWEPT))}
    for run in runs[::3]:
        shutil.rmtree(run.directory)
    assert bnexp("resume", "sweep").status == 0, "sweep.json has them too"
    again = find_runs([Path("sweep")])
    assert [(run.digest, run.record["overrides"]) for run in again] == [
        (run.digest, run.record["overrides"]) for run in runs
    ]


@pytest.mark.parametrize("name", ["C++ [x]", "a,b", "${x}", "null", "007", " before", "é'\"\\", "two\nlines"])
def test_one_that_is_there(bnexp: Bnexp, tmp_path: Path, name: str) -> None:
    """Given to each key, with and without a plus, and the run's own directory below it."""
    make_pictures(tmp_path / name)
    words = ("train", *FOLDER, f"++dataset.path={name}", f"dataset.root={name}", f"hydra.run.dir={name}/new/run")
    assert bnexp(*words).status == 0
    assert record_of(tmp_path / name / "new" / "run")["config"]["dataset"]["path"] == name
    started = bnexp("train", *FOLDER, f"+init_from={name}/new/run", f"dataset.path={name}", f"dataset.root={name}")
    assert started.status == 0
    [run] = find_runs([Path("results/runs")])
    assert run.config["init_from"] == f"{name}/new/run"
    assert not {"dataset.path", "init_from", "'"} & {*run.directory.name.split("="), *run.directory.name}
    assert bnexp("train", *words[1:]).status == 0, "it is finished"
    assert [path.name for path in tmp_path.iterdir() if path.name not in (name, "results")] == []


@pytest.mark.parametrize(
    "name", ["müller/фото", "a,b", "a=b c", "null", "2024", "it's", "C++ [x]", "${x}?", "choice(a,b)"]
)
@pytest.mark.parametrize("multirun", [False, True])
def test_one_that_is_to_be_made(bnexp: Bnexp, name: str, multirun: bool) -> None:
    key, words = ("hydra.sweep.dir", ("-m", "seed=0,1")) if multirun else ("hydra.run.dir", ())
    outcome = bnexp("train", *DIGITS, *words, f"{key}={name}", "dry_run=true")
    if "${" in name:
        assert outcome.status == 2, "what isn't there is an interpolation"
        return
    assert outcome.status == 0
    if name in ("a,b", "it's"):
        assert bnexp("train", *DIGITS, *words, f"{key}={name}").status == 0
        assert len(find_runs([Path(name)])) == 1 + multirun


def test_what_hydra_reads_stays_as_it_is(bnexp: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value, place in (
        ("'in quotes'", "in quotes"),
        ("~/x", "home/x"),
        ("year-${now:%Y}", f"year-{datetime.now():%Y}"),
    ):
        assert bnexp("train", *DIGITS, "init_from=null", f"hydra.run.dir={value}").status == 0
        assert record_of(tmp_path / place)["config"]["init_from"] is None
    make_pictures(tmp_path / "home" / "a b")
    make_pictures(tmp_path / "c", shade=50)
    sweep = ("train", "-m", *FOLDER, "hydra.sweep.dir=sweep")
    assert bnexp(*sweep, f"dataset.path=choice('{tmp_path}/home/a b',c)").status == 0
    assert bnexp(*sweep, "dataset.path=~/a b,c").status == 0, "the same runs"
    assert len(find_runs([Path("sweep")])) == 2


def test_what_is_not_there_is_named(bnexp: Bnexp, tmp_path: Path) -> None:
    make_pictures(tmp_path / "a")
    for word in ("dataset.path=no [where]", "dataset.path=a,no, where", "init_from=no'where", "dataset.path=no\nwhere"):
        outcome = bnexp("train", "-m", *FOLDER, "dataset.path=a", word)
        assert (outcome.status, len(outcome.err.splitlines())) == (2, 1), word
        assert word.split("=")[0] in outcome.err
    assert bnexp("train", *FOLDER, "dataset.path=a,b").status == 2, "a list without -m"
    assert bnexp("train", *DIGITS, "hydra.run.dir=b\udce9").status == 2
    assert bnexp("train", *DIGITS, "hydra.run.dir=two\nlines").status == 2
    assert {path.name for path in tmp_path.iterdir()} == {"a", "data"}, "a cache of decoded pictures"


def test_other_commands_take_them_too(bnexp: Bnexp, tmp_path: Path) -> None:
    make_pictures(tmp_path / "C++ [x]")
    data = ("dataset=image_folder", "dataset.path=C++ [x]", "dataset.size=8", "dataset.root=it's, mine")
    assert "C++ [x]" in bnexp("data", "status", *data).out
    assert bnexp("data", "fetch", *data, "dataset.validation=2").status == 0
    assert len([*Path("it's, mine/cache").glob("*.safetensors")]) == 1
    own = Path("it's, mine/norm")
    own.mkdir()
    (own / "other.yaml").write_text("name: layer\n")
    dry = ("dry_run=true", "norm=other", "--config-dir", "it's, mine")
    assert bnexp("train", *DIGITS, *dry).status == 0
    measured = bnexp(
        "bench", *FOLDER, *data, "norm=batch", "modes=eager", "rounds=1", "seconds=0.001", "out=it's, mine/b"
    )
    assert (measured.status, measured.err) == (0, "")
    assert len([*Path("it's, mine/b").iterdir()]) > 0


PARTS = [*"abcé中🙂 ,='\"\\${}[]()#:;%&|<>*?!~+-.@^`_0\t\n\x07", "${", "\udcff", "??", "://", "null"]


@pytest.mark.faults
def test_drawn_names(bnexp: Bnexp, tmp_path: Path, times: Times, tell: Tell) -> None:
    chance, count = random.Random(0), times(50)
    for number in range(count):
        name = "".join(chance.choices(PARTS, k=chance.randint(1, 12))).replace("/", "") or "x"
        place = tmp_path / str(number) / (name if name not in (".", "..") else "dots")
        place.mkdir(parents=True)
        os.chdir(place.parent)
        words = (*DIGITS, f"+dataset.root={place.name}", f"seed={number}")
        outcome = bnexp(
            "train", *words, f"hydra.run.dir={place}/run" if number % 2 else f"hydra.run.dir={place.name}/run"
        )
        if "\udcff" in name:
            assert outcome.status == 2, "TensorBoard writes to names in UTF-8 alone"
            assert bnexp("train", *words, "hydra.run.dir=run").status == 0
            directory = Path("run")
        else:
            assert outcome.status == 0, (name, outcome)
            directory = place / "run"
        record = record_of(directory)
        assert os.path.samefile(record["config"]["dataset"]["root"], place), name
        assert record["paths"] == {"directory": str(directory.absolute()), "dataset.root": str(place)}
        os.chdir("/")
        assert bnexp("resume", str(place.parent / directory)).status == 0, name
    tell(f"{count} folders of drawn names, with quotes, brackets, ${{…}}, control characters, bytes: trained, resumed")


# ---- commands that are printed


@pytest.fixture
def terminated(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The next run ends as by SIGINT at its second evaluation."""
    evaluate, left = Evaluator.evaluate, [0]

    def counted(*arguments: Any) -> Evaluation:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(Evaluator, "evaluate", counted)

    def next_one() -> None:
        left[0] = 2

    return next_one


def command_in(text: str) -> str:
    [line] = [line for line in text.splitlines() if "resume it by: " in line]
    return line.partition("resume it by: ")[2]


def test_a_printed_command_can_be_pasted(bnexp: Bnexp, tmp_path: Path, terminated: Callable[[], None]) -> None:
    folder = tmp_path / "C++ [x] it's"
    folder.mkdir()
    os.chdir(folder)
    words = ("train", *DIGITS, "steps=2", f"hydra.run.dir={folder}/$HOME #1")
    terminated()
    outcome = bnexp(*words)
    assert outcome.status == 130
    os.chdir(tmp_path)
    terminated()
    again = bnexp(*words)
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(["sh", "-c", command_in(again.out)], cwd=tmp_path, env=environment, capture_output=True, check=True)
    [run] = find_runs([folder])
    assert run.summary["status"] == "finished"
    assert shlex.split(command_in(outcome.out)) == ["bnexp", "resume", "$HOME #1"]


@pytest.mark.usefixtures("no_figures")
def test_the_other_printed_commands(bnexp: Bnexp, tmp_path: Path) -> None:
    make_pictures(tmp_path / "it's")
    sweep = ("train", "-m", *FOLDER, "dataset.path=it's", "hydra.sweep.dir=[x] y", "norm=none,batch")
    assert bnexp(*sweep, "seed=0").status == 0
    cut_off(Path("[x] y/norm=none"))
    refused = bnexp(*sweep, "seed=0,1")
    assert refused.status == 2
    first = refused.err.split("in this sweep: ")[1].removesuffix(" first\n")
    assert bnexp(*shlex.split(first)[1:]).status == 0
    [board] = [line for line in bnexp("report", "[x] y").out.splitlines() if "tensorboard" in line]
    assert shlex.split(board.partition("curves: ")[2]) == ["tensorboard", "--logdir", "[x] y"]
    Path("it's").rename("moved 'here")
    _loaded.clear()
    shutil.rmtree("[x] y/norm=none")
    lost = bnexp("resume", "[x] y")
    assert lost.status == 2
    hint = shlex.split(lost.err[lost.err.index("bnexp resume") :])
    assert bnexp(*(word.replace("FOLDER", "moved 'here") for word in hint[1:])).status == 0
    assert Path("[x] y/norm=none/summary.json").exists(), "what is printed finishes the sweep"


# ---- from elsewhere


@pytest.fixture
def project(bnexp: Bnexp, tmp_path: Path) -> Path:
    """A folder with pictures, a finished sweep that has them by a relative path, and its copy of which one run is
    missing and one was interrupted.
    """
    folder = tmp_path / "A"
    folder.mkdir()
    os.chdir(folder)
    make_pictures(Path("pictures"))
    words = ("train", "-m", *FOLDER, "dataset.path=pictures", "dataset.root=cache", "seed=0,1")
    assert bnexp(*words, "hydra.sweep.dir=whole").status == 0
    assert bnexp(*words, "hydra.sweep.dir=mine").status == 0
    break_off(Path("mine"))
    return folder


def break_off(sweep: Path) -> None:
    """One of its runs is missing, one was killed."""
    shutil.rmtree(sweep / "seed=1")
    cut_off(sweep / "seed=0")
    _loaded.clear()


def check_resumed(folder: Path, whole: Path) -> None:
    runs = find_runs([whole])
    assert len(runs) == 2
    for run in runs:
        mine = folder / run.directory.name
        for name in ("metrics.csv", "checkpoint.safetensors"):
            assert (mine / name).read_bytes() == (run.directory / name).read_bytes()
        assert len([*mine.glob("events.out.tfevents.*")]) == 1
        assert json.loads((mine / "summary.json").read_text())["status"] == "finished"


def test_a_sweep_is_resumed_from_anywhere(bnexp: Bnexp, project: Path) -> None:
    Path("B").mkdir()
    before = (project / "mine/sweep.json").read_bytes()
    for place, name in (("B", "../mine"), ("mine", "."), ("/", f"{project}/mine"), ("mine/seed=0", "..")):
        os.chdir(project / place)
        here = {*os.listdir()}
        outcome = bnexp("resume", name)
        assert (outcome.status, outcome.err) == (0, ""), place
        assert not {"pictures", "cache", "data", "results"} & ({*os.listdir()} - here)
        assert (project / "mine/sweep.json").read_bytes() == before
        check_resumed(project / "mine", project / "whole")
        break_off(project / "mine")


def test_one_run_of_it_alone(bnexp: Bnexp, project: Path) -> None:
    os.chdir("/")
    assert bnexp("resume", str(project / "mine/seed=0")).status == 0
    assert bnexp("resume", str(project / "mine")).status == 0
    check_resumed(project / "mine", project / "whole")


def test_after_all_of_it_was_moved(bnexp: Bnexp, project: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "C"
    moved.parent.mkdir()
    project.rename(moved)
    os.chdir("/")
    assert bnexp("resume", str(moved / "mine")).status == 0
    assert not project.exists()
    check_resumed(moved / "mine", moved / "whole")
    assert record_of(moved / "mine/seed=1")["paths"]["dataset.path"] == str(moved / "pictures")


def test_after_the_sweep_alone_was_moved(bnexp: Bnexp, project: Path, tmp_path: Path) -> None:
    (project / "mine").rename(tmp_path / "mine")
    os.chdir("/")
    assert bnexp("resume", str(tmp_path / "mine")).status == 0
    check_resumed(tmp_path / "mine", project / "whole")


def test_after_the_data_alone_were_moved(bnexp: Bnexp, project: Path, tmp_path: Path) -> None:
    Path("pictures").rename(tmp_path / "data")
    make_pictures(tmp_path / "other", shade=90)
    os.chdir(tmp_path)
    contents = {path: path.read_bytes() for path in (project / "mine").rglob("*") if path.is_file()}
    for moves in ([], ["dataset.path=nowhere"], ["dataset.path=other"], ["init_from=data"], ["dataset.pth=data"]):
        outcome = bnexp("resume", "A/mine", *moves)
        assert (outcome.status, len(outcome.err.splitlines())) == (2, 1), moves
    assert {path: path.read_bytes() for path in contents if path.name != ".lock"} == {
        path: content for path, content in contents.items() if path.name != ".lock"
    }
    assert bnexp("resume", "A/mine", "dataset.path=data", "dataset.root=.").status == 0
    check_resumed(project / "mine", project / "whole")
    assert Path("cache").is_dir()
    now = {"dataset.path": str(tmp_path / "data"), "dataset.root": str(tmp_path)}
    entries = [run.record for run in find_runs([project / "mine"])]
    entries += json.loads((project / "mine/sweep.json").read_text())["jobs"]
    assert all(entry["paths"].items() >= now.items() for entry in entries)
    os.chdir("/")
    shutil.rmtree(project / "mine/seed=0")
    assert bnexp("resume", str(project / "mine")).status == 0, "from now on without a word"
    check_resumed(project / "mine", project / "whole")


def test_nothing_is_fetched_to_resume(
    bnexp: Bnexp, fake_mnist: DatasetConfig, tmp_path: Path, sets: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = list[object]()
    monkeypatch.setattr(sets.TorchvisionSet, "download", lambda *arguments: fetched.append(arguments))
    words = ("-m", "seed=0,1", "dataset=mnist", "dataset.root=.", "dataset.validation=50", *DIGITS[1:])
    assert bnexp("train", *words, "hydra.sweep.dir=mine").status == 0
    shutil.rmtree("mine/seed=1")
    _loaded.clear()
    (tmp_path / "data").mkdir()
    shutil.move("MNIST", "data/MNIST")
    (tmp_path / "B").mkdir()
    os.chdir("B")
    outcome = bnexp("resume", "../mine")
    assert (outcome.status, len(outcome.err.splitlines())) == (2, 1)
    assert str(tmp_path / "MNIST/raw") in outcome.err
    assert "dataset.root=FOLDER" in outcome.err
    assert (fetched, os.listdir()) == ([], [])
    assert bnexp("resume", "../mine", "dataset.root=../data").status == 0
    assert [run.summary["status"] for run in find_runs([tmp_path / "mine"])] == ["finished"] * 2
    assert fetched == []


def test_where_it_started_is_found_too(bnexp: Bnexp, tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    os.chdir("A")
    for name, seed in (("source", 0), ("other", 1)):
        assert bnexp("train", *DIGITS, f"seed={seed}", f"hydra.run.dir={name}").status == 0
    words = ("train", "-m", *DIGITS, "init_from=source", "seed=5,6", "hydra.sweep.dir=mine")
    assert bnexp(*words).status == 0
    expected = Path("mine/seed=6/checkpoint.safetensors").read_bytes()
    shutil.rmtree("mine/seed=6")
    os.chdir("/")
    place = tmp_path / "A"
    assert bnexp("resume", str(place / "mine")).status == 0
    assert (place / "mine/seed=6/checkpoint.safetensors").read_bytes() == expected
    shutil.rmtree(place / "mine/seed=6")  # of a run that never started no record tells the source
    before = (place / "mine/seed=5/run.json").read_bytes()
    assert bnexp("resume", str(place / "mine"), f"init_from={place / 'other'}").status == 2
    assert not (place / "mine/seed=6").exists()
    assert (place / "mine/seed=5/run.json").read_bytes() == before
    assert bnexp("resume", str(place / "mine")).status == 0
    cut_off(place / "mine/seed=6")
    read_source.cache_clear()
    (place / "source").rename(tmp_path / "moved")
    for moves in ([], [f"init_from={place / 'other'}"], [f"init_from={tmp_path}"]):
        outcome = bnexp("resume", str(place / "mine"), *moves)
        assert (outcome.status, len(outcome.err.splitlines())) == (2, 1), moves
    assert bnexp("resume", str(place / "mine"), f"init_from={tmp_path / 'moved'}").status == 0
    assert (place / "mine/seed=6/checkpoint.safetensors").read_bytes() == expected


@pytest.mark.usefixtures("no_figures")
def test_probes_find_the_data_from_anywhere(bnexp: Bnexp, project: Path) -> None:
    os.chdir("/")
    assert bnexp("probe", str(project / "whole/seed=0")).status == 0


def test_records_without_places_are_read_from_where_one_stands(bnexp: Bnexp, project: Path) -> None:
    """As those of runs that are older."""
    for path in Path("mine").rglob("*.json"):
        record = json.loads(path.read_text())
        for entry in (record, *record.get("jobs", [])):
            entry.pop("paths", None)
        path.write_text(json.dumps(record))
    assert bnexp("resume", "mine").status == 0
    check_resumed(project / "mine", project / "whole")
