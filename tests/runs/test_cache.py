"""Where compiled code is kept, and what becomes of runs where that place, or the compiler, is not as it should be."""

import getpass
import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from children import end_of, import_everything, start
from conftest import Bnexp, Outcome, Tell, Times

from bnexp.runs.cache import DIGEST, VARIABLE, cache_directory, open_cache
from bnexp.runs.directory import CHECKPOINT, METRICS
from bnexp.training import engine
from bnexp.training.compiled import Compiled
from bnexp.training.compiler import has_compiler
from bnexp.training.engine import Stack

needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler (g++ or clang++)")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act for another user")
TRAIN = ("train", "dataset=digits", "device=cpu", "steps=40", "arch.hidden=[8]", "norm=batch", "eval.first_every=20")
RUN = ("hydra.run.dir=r",)
OTHER = 12345  # another user


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, warm_scratch: Path, tmp_path: Path) -> None:
    """As a process that has compiled nothing yet, and in which even short runs are worth it."""
    import_everything()  # by a run, which is not to be compiled
    monkeypatch.setattr(engine, "_compiled", {})
    monkeypatch.setattr("bnexp.training.device.COMPILE_FROM", 1)
    monkeypatch.setattr("bnexp.runs.console._printed", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled, everything else is as if it were: a tenth of a second in place of seconds."""
    monkeypatch.setattr("bnexp.training.compiler.run_small_function", lambda *_: None)
    monkeypatch.setattr(Compiled, "compile", lambda compiled, _: compiled.function)
    monkeypatch.setattr("torch.compiler.load_compiled_function", lambda file, external_data: pickle.load(file))


def record(folder: str = "r") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "run.json").read_text())
    return found


def bytes_of(folder: str = "r") -> list[bytes]:
    return [Path(folder, name).read_bytes() for name in (METRICS, CHECKPOINT)]


# ---- who could have put it there


class Mark:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def names_kept(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that the run would read."""
    looked_for: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr("bnexp.training.compiled.load", lambda path, captured: looked_for.append(path.name))
        assert bnexp(*TRAIN, "compile=true", "hydra.run.dir=look").status == 0
    forget_compiled(monkeypatch)
    assert looked_for
    return looked_for


def forget_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_compiled", {})


def plant(steps: Path, names: list[str], mark: Path) -> None:
    """Files that leave a mark, behind the right digest."""
    for name in names:
        content = pickle.dumps(Mark(mark))
        (steps / name).write_bytes(hashlib.sha256(name.encode() + content).digest() + content)


def give_away(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, OTHER, OTHER, follow_symlinks=False)


def another_users(place: Path) -> Path:
    give_away(place)
    return place


def open_to_all(place: Path) -> Path:
    (place / "bnexp").chmod(0o777)
    return place


def open_to_the_group(place: Path) -> Path:
    (place / "bnexp" / "steps").chmod(0o770)
    return place


def below_an_open_one(place: Path) -> Path:
    place.chmod(0o777)
    return place


def a_link_to_anothers(place: Path) -> Path:
    give_away(place)
    link = place.with_name("link")
    link.symlink_to(place)
    return link


def a_link_of_anothers(place: Path) -> Path:
    link = place.with_name("link")
    link.symlink_to(place)
    os.chown(link, OTHER, OTHER, follow_symlinks=False)
    return link


def a_link_through_an_open_one(place: Path) -> Path:
    """Link → link in a directory that all can write to → a safe one."""
    between = place.with_name("between")
    between.mkdir()
    between.chmod(0o777)
    (between / "second").symlink_to(place)
    link = place.with_name("link")
    link.symlink_to(between / "second")
    return link


def a_sticky_one_itself(place: Path) -> Path:
    (place / "bnexp" / "steps").chmod(0o1777)
    return place


PLACES = [open_to_all, open_to_the_group, below_an_open_one, a_link_through_an_open_one, a_sticky_one_itself]
OF_OTHERS = [another_users, a_link_to_anothers, a_link_of_anothers]


@needs_compiler
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("make", [*PLACES, *(pytest.param(make, marks=needs_root) for make in OF_OTHERS)])
def test_what_others_can_write_is_not_read(
    bnexp: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path]
) -> None:
    names, mark = names_kept(bnexp, monkeypatch), tmp_path / "mark"
    steps = tmp_path / "place" / "bnexp" / "steps"
    steps.mkdir(parents=True)
    plant(steps, names, mark)
    monkeypatch.setenv("XDG_CACHE_HOME", str(make(tmp_path / "place")))
    outcome = bnexp(*TRAIN, "compile=true", *RUN)
    assert (outcome.status, mark.exists()) == (0, False), outcome
    assert sorted(path.name for path in steps.iterdir()) == sorted(names)
    assert outcome.out.count(str(tmp_path)) == 1  # said once
    assert record()["compiled"] is True


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_what_the_user_alone_can_write_is_read(bnexp: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the tests above would say nothing."""
    names, mark = names_kept(bnexp, monkeypatch), tmp_path / "mark"
    steps = tmp_path / "place" / "bnexp" / "steps"
    steps.mkdir(parents=True)
    plant(steps, names, mark)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "place"))
    assert bnexp(*TRAIN, "compile=true", *RUN).status == 0
    assert mark.exists()


@needs_compiler
@needs_root
@pytest.mark.usefixtures("quick")
def test_a_file_of_anothers_is_not_read(bnexp: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved there while the directory was open, say."""
    names, mark = names_kept(bnexp, monkeypatch), tmp_path / "mark"
    steps = tmp_path / "place" / "bnexp" / "steps"
    steps.mkdir(parents=True)
    plant(steps, names, mark)
    for path in steps.iterdir():
        os.chown(path, OTHER, OTHER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "place"))
    assert bnexp(*TRAIN, "compile=true", *RUN).status == 0
    assert not mark.exists()


@needs_root
def test_another_user_uses_no_directory_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that user: neither a third one's directory, nor one that is open; but below root's sticky one."""
    with TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        for name, owner, mode in (("third", OTHER + 1, 0o755), ("open", OTHER, 0o777), ("sticky", 0, 0o1777)):
            (place / name).mkdir()
            os.chown(place / name, owner, owner)
            (place / name).chmod(mode)

        def used() -> int:
            os.setuid(OTHER)
            kept = []
            for name in ("third", "open", "sticky"):
                os.environ["XDG_CACHE_HOME"] = str(place / name)
                kept.append(open_cache().kept)
            return 0 if kept == [None, None, place / "sticky" / "bnexp" / "steps"] else 1

        monkeypatch.chdir(place)
        assert end_of(start(used)) == 0
        assert not list((place / "third").iterdir()) + list((place / "open").iterdir())
        assert (place / "sticky" / "bnexp").stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("variable", "below"),
    [("", "home/.cache"), ("relative", "home/.cache"), ("{}/given", "given"), (".", "home/.cache")],
)
def test_where_it_is(bnexp: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, below: str) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", variable.format(tmp_path))
    before = os.umask(0)
    try:
        assert bnexp(*TRAIN, "compile=true", *RUN).status == 0
    finally:
        os.umask(before)
    place = tmp_path / below
    for part in (place, place / "bnexp", place / "bnexp" / "steps"):
        assert part.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in tmp_path.iterdir() if path.name != ".cache"} == {
        below.split("/", maxsplit=1)[0],
        "home",
        "r",
    }
    assert cache_directory() == place / "bnexp"


@needs_compiler
@needs_root
def test_nothing_is_taken_from_the_temporary_directory(
    bnexp: Bnexp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's own names there are anybody's to take first; its headers, which it precompiles, as well."""
    shared = tmp_path / "shared"
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    for folder in (shared, shared / f"torchinductor_{getpass.getuser()}"):
        folder.mkdir()
        give_away(folder)
        folder.chmod(0o1777)
    os.chown(shared, 0, 0)
    monkeypatch.setattr("bnexp.training.compiler.run_small_function", lambda *_: None)
    assert end_of(start(lambda: bnexp(*TRAIN, "compile=true", *RUN).status)) == 0
    assert record()["compiled"] is True
    assert [list(path.iterdir()) for path in shared.iterdir()] == [[]]


# ---- the compiler


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def uncompiled(bnexp: Bnexp) -> list[bytes]:
    assert bnexp(*TRAIN, "compile=false", "hydra.run.dir=uncompiled").status == 0
    return bytes_of("uncompiled")


COMPILERS = {
    "missing": "nobody++",
    "missing with a path": "/nowhere/g++",
    "with arguments": "nobody g++",
    "a quote": "g++ '",
    "a directory": "/tmp",
}


@pytest.mark.parametrize("name", COMPILERS)
def test_a_compiler_that_is_not_there(
    bnexp: Bnexp, uncompiled: list[bytes], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("CXX", COMPILERS[name])
    outcome = bnexp(*TRAIN, *RUN)
    assert outcome.status == 0, outcome
    assert bytes_of()[0] == uncompiled[0]
    assert record()["compiled"] is False
    assert COMPILERS[name] in record()["not_compiled_because"]
    refused = bnexp(*TRAIN, "compile=true", "hydra.run.dir=true")
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert not Path("true").exists()


def test_a_compiler_that_is_not_there_does_not_matter_where_nothing_is_compiled(
    bnexp: Bnexp, uncompiled: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnexp.training.device.COMPILE_FROM", 5000)
    monkeypatch.setenv("CXX", "nobody++")
    outcome = bnexp(*TRAIN, *RUN)
    assert outcome.status == 0
    assert "nobody++" not in outcome.out
    assert record()["not_compiled_because"] is None


@pytest.mark.extra
def test_a_compiler_that_does_not_work(
    bnexp: Bnexp, uncompiled: list[bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It crashes. Here the small function is not compiled in two places: one is enough to see it."""
    monkeypatch.setattr("bnexp.training.compiler.without_scratch", lambda problem: open_cache())
    monkeypatch.setenv("CXX", script(tmp_path / "compiler", "kill -SEGV $$"))
    outcome = bnexp(*TRAIN, *RUN)
    assert outcome.status == 0, outcome
    assert bytes_of()[0] == uncompiled[0]
    assert record()["compiled"] is False
    assert record()["not_compiled_because"]
    assert bnexp(*TRAIN, "compile=true", "hydra.run.dir=true").status == 2
    assert not Path("true").exists()


# ---- as it was planned


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnexp.training.device.compiler_problem", lambda *_: "no compiler today")


def interrupt(bnexp: Bnexp, patch: pytest.MonkeyPatch, *words: str) -> None:
    """Stop it by SIGTERM after 25 steps."""
    update = Stack.update

    def stops(stack: Stack, step: int, batch: Any) -> None:
        update(stack, step, batch)
        if step == 25:
            os.kill(os.getpid(), 15)

    patch.setattr(Stack, "update", stops)
    assert bnexp(*words).status == 143


@needs_compiler
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("again", [("resume", "r"), (*TRAIN, *RUN)], ids=["resume", "typed again"])
def test_what_began_uncompiled_goes_on_uncompiled(
    bnexp: Bnexp, uncompiled: list[bytes], monkeypatch: pytest.MonkeyPatch, again: tuple[str, ...]
) -> None:
    with monkeypatch.context() as patch:
        no_compiler(patch)
        interrupt(bnexp, patch, *TRAIN, *RUN)
    assert bnexp(*again).status == 0
    assert record()["compiled"] is False
    assert bytes_of()[0] == uncompiled[0]


@needs_compiler
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("again", [("resume", "r"), (*TRAIN, *RUN)], ids=["resume", "typed again"])
def test_what_began_compiled_goes_on_compiled_or_not_at_all(
    bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch, again: tuple[str, ...]
) -> None:
    with monkeypatch.context() as patch:
        interrupt(bnexp, patch, *TRAIN, *RUN)
    assert record()["compiled"] is True
    with monkeypatch.context() as patch:
        no_compiler(patch)
        outcome = bnexp(*again)
        assert (outcome.status, outcome.err.count("\n")) == (2, 1)
        assert "r began compiled" in outcome.err
    assert bnexp(*again).status == 0
    assert bnexp(*TRAIN, "hydra.run.dir=whole").status == 0
    assert bytes_of() == bytes_of("whole")


@needs_compiler
@pytest.mark.usefixtures("quick")
def test_a_sweep_goes_on_as_each_of_its_runs_began(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = (*TRAIN, "-m", "seed=0,1,2", "hydra.sweep.dir=s")
    with monkeypatch.context() as patch:
        no_compiler(patch)
        interrupt(bnexp, patch, *sweep)  # one by one: two haven't begun
    assert bnexp("resume", "s").status == 0
    assert [record(f"s/seed={seed}")["compiled"] for seed in range(3)] == [False, True, True]


@needs_compiler
@pytest.mark.parametrize("many", [False, True], ids=["a run", "a sweep"])
def test_compiling_that_fails_in_the_run_stays_resumable(
    bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    """The disk is full by then, or a worker's machine is not like the one that planned it."""
    monkeypatch.setattr("bnexp.training.compiler.run_small_function", lambda *_: None)

    def fails(compiled: Compiled, arguments: object) -> None:
        raise OSError(28, "No space left on device")

    words = (*TRAIN, "-m", "seed=0,1", "hydra.sweep.dir=r") if many else (*TRAIN, *RUN)
    with monkeypatch.context() as patch:
        patch.setattr(Compiled, "compile", fails)
        outcome = bnexp(*words)
    assert (outcome.status, outcome.err.count("\n")) == (1, 1), outcome
    assert "Traceback" not in outcome.out + outcome.err
    folder = "r/seed=0" if many else "r"
    assert json.loads(Path(folder, "summary.json").read_text())["status"] == "failed"
    monkeypatch.setattr(Compiled, "compile", lambda compiled, _: compiled.function)
    assert bnexp("resume", "r").status == 0
    assert json.loads(Path(folder, "summary.json").read_text())["status"] == "finished"
    assert record(folder)["compiled"] is True


@pytest.mark.usefixtures("quick")
def test_a_worker_that_could_compile_follows_the_plan(
    bnexp: Bnexp, uncompiled: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        no_compiler(patch)
        outcome = bnexp(*TRAIN, "-m", "seed=0,1", "hydra.sweep.dir=s", "executor.workers=2")
    assert outcome.status == 0, outcome
    assert outcome.out.count("no compiler today") == 1
    assert [record(f"s/seed={seed}")["compiled"] for seed in (0, 1)] == [False, False]
    assert bytes_of("s/seed=0")[0] == uncompiled[0]


# ---- all of it, drawn


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """File systems of their own, where root can have them: one that is full, one from which nothing is executed."""
    mounted: dict[str, Path] = {}
    for name, options in (("full", "size=64k"), ("noexec", "size=2g,noexec")):
        place = tmp_path_factory.mktemp(name)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0:
            mounted[name] = place
    yield mounted
    for place in mounted.values():
        subprocess.run(["umount", str(place)], capture_output=True, check=True)


def broken_place(kind: str, folder: Path, disks: dict[str, Path]) -> Path:
    """A directory for caches with something wrong about it."""
    place = disks.get(kind, folder / ("a space" if kind == "space" else "place"))
    if kind == "file":
        place.write_text("in the way")
    elif kind == "link to nowhere":
        place.symlink_to(folder / "nowhere")
    elif kind == "circle":
        place.symlink_to(place)
    else:
        place.mkdir(exist_ok=True)
    if kind in ("open", "closed"):
        place.chmod(0o777 if kind == "open" else 0)
    if kind == "another's" and os.geteuid() == 0:
        os.chown(place, OTHER, OTHER)
    return place


PLACES_DRAWN = ("good", "file", "open", "closed", "another's", "full", "noexec", "space", "link to nowhere", "circle")
COMPILERS_DRAWN = ("", "", "", "nobody++", "false")
DAMAGE_DRAWN = ("", "half", "other digest", "no pickle", "another class", "pipe", "gone")


def damage_kept(place: Path, kind: str) -> int:
    """What is kept there, damaged; how many files."""
    files = [path for path in place.glob("bnexp/steps/*") if path.stat().st_size > DIGEST]
    for path in files if kind else []:
        content = {"no pickle": b"text", "another class": pickle.dumps(Path())}.get(kind, path.read_bytes()[DIGEST:-99])
        digest = hashlib.sha256((path.name.encode() if kind != "other digest" else b"") + content).digest()
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind != "gone":
            path.write_bytes(digest + content)
    return len(files)


@needs_compiler
@pytest.mark.extra
@pytest.mark.faults
def test_broken_caches_and_compilers(
    bnexp: Bnexp,
    times: Times,
    tell: Tell,
    tmp_path: Path,
    warm_scratch: Path,
    small_disk: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each run ends, and its bytes are those of a compiled run or of an uncompiled one, as its record says. What takes
    ten seconds and more, a compiler that fails and headers compiled anew, is in the full number alone.
    """
    chance, words = random.Random(21), (*TRAIN, "compile=auto")
    expected: dict[bool, list[bytes]] = {}
    with monkeypatch.context() as patch:
        for compiled in (True, False):
            forget_compiled(patch)
            patch.setattr("bnexp.training.device.COMPILE_FROM", 1 if compiled else 5000)
            assert bnexp(*words, *RUN).status == 0
            assert record()["compiled"] is compiled
            expected[compiled] = bytes_of()
            shutil.rmtree("r")
    kinds = [kind for kind in PLACES_DRAWN if kind not in ("full", "noexec") or kind in small_disk]
    whole, ended, damaged = times(50) == 50, [0, 0], 0
    for number in range(count := times(50) if whole else 2):
        folder = tmp_path / f"draw{number}"
        folder.mkdir()
        kept, own = (broken_place(chance.choice(kinds), folder / name, small_disk) for name in made(folder))
        monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
        monkeypatch.setenv(VARIABLE, str(chance.choice([own, warm_scratch, warm_scratch]) if whole else warm_scratch))
        monkeypatch.setattr("bnexp.runs.cache._ours", ("", ""))
        compiler, damage = chance.choice(COMPILERS_DRAWN[: None if whole else -1]), chance.choice(DAMAGE_DRAWN)
        for turn in (0, 1):
            forget_compiled(monkeypatch)
            monkeypatch.setenv("CXX", compiler)
            found: Outcome = bnexp(*words, *RUN)
            assert found.status == 0, (number, kept, compiler, damage, found)
            assert bytes_of() == expected[record()["compiled"]], (number, kept, compiler, damage, found)
            assert record()["compiled"] is not bool(compiler), (number, kept, record())
            ended[record()["compiled"]] += 1
            shutil.rmtree("r")
            there = damage_kept(kept, damage) if turn == 0 and damage and kept.is_dir() else 0
            damaged += there
            if not there and not whole:
                break
    tell(
        f"{count} draws of caches (a file, open, another's, full, noexec, a space, …) and compilers, each twice, "
        f"{damaged} kept steps damaged between: {ended[1]} runs compiled, {ended[0]} not, the bytes as each record says"
    )


def made(folder: Path) -> Iterator[str]:
    for name in ("kept", "own"):
        (folder / name).mkdir()
        yield name
