"""The files of a run: their permissions and encoding, that they are still there when a run ends, and what becomes of
runs on file systems that lack an operation.
"""

import ast
import errno
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from children import await_that, end_of, import_everything, in_child, kill, lead_forks, start
from conftest import Bnexp, Tell, Times

import bnexp as package
from bnexp.runs import files
from bnexp.runs.config import ConfigError
from bnexp.runs.lock import Lock
from bnexp.runs.record import find_runs
from bnexp.training import loop as train
from bnexp.training.compiler import has_compiler

SHORT = ("dataset=digits", "steps=60", "eval.first_every=10", "threads=1", "arch.hidden=[8]")
ALONE = ("train", *SHORT, "compile=false", "hydra.run.dir=mine")
OFTEN = "checkpoint.every_seconds=0.0001"
SWEEP = ("train", *SHORT, "compile=false", "-m", "seed=range(3)", "executor.workers=2", "hydra.sweep.dir=mine")
Damage = Callable[[Path], object]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "_reported", False)


def files_of(folder: str) -> dict[str, list[bytes]]:
    """Of the finished runs below, what must not differ."""
    names = ("metrics.csv", "checkpoint.safetensors")
    runs = [run for run in find_runs([Path(folder)]) if run.summary["status"] == "finished"]
    return {run.directory.name: [(run.directory / name).read_bytes() for name in names] for run in runs}


@cache
def whole(words: tuple[str, ...]) -> dict[str, list[bytes]]:
    """Of a command that nothing befell."""
    import_everything()
    with TemporaryDirectory() as folder, chdir(folder):
        assert in_child(words, lead_forks) == 0
        return files_of("mine")


# ---- permissions


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: str) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {"files": set(), "folders": set()}
    for path in (Path(folder), *Path(folder).rglob("*")):
        found["folders" if path.is_dir() else "files"].add(path.stat().st_mode & 0o777)
    return found


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o002, 0o022])
def test_a_run_keeps_to_the_umask(bnexp: Bnexp, mask: int) -> None:
    with umask(mask):
        assert bnexp(*ALONE, "eval.keep=true", "checkpoint.every_seconds=0.001").status == 0
        for name in ("summary.json", "metrics.csv", "timing.csv"):  # written anew by who goes on
            Path("mine", name).chmod(0o666 & ~mask)
        Path("mine/summary.json").unlink()
        assert bnexp("resume", "mine").status == 0
    assert modes("mine") == {"files": {0o666 & ~mask}, "folders": {0o777 & ~mask}}


def test_a_comparison_on_workers_keeps_to_the_umask() -> None:
    def prepare() -> None:
        lead_forks()
        os.umask(0o077)

    words = ("compare", *SHORT, "compile=false", "norm=none,batch", "seed=0,1", *SWEEP[-2:])
    assert in_child(words, prepare) == 0
    assert modes("mine") == {"files": {0o600}, "folders": {0o700}}


def test_pictures_that_are_kept_keep_to_the_umask(bnexp: Bnexp) -> None:
    from PIL import Image  # noqa: PLC0415

    for split, shade in ((split, shade) for split in ("train", "test") for shade in (40, 200)):
        folder = Path("pictures", split, str(shade))
        folder.mkdir(parents=True)
        for number in range(4):
            Image.new("L", (8, 8), shade + number).save(folder / f"{number}.png")
    chosen = ("dataset=image_folder", "dataset.path=pictures", "dataset.size=8", "dataset.validation=2", "batch_size=4")
    with umask(0o077):
        assert bnexp(*ALONE, *chosen, "dataset.root=kept").status == 0
    assert modes("kept") == {"files": {0o600}, "folders": {0o700}}


# ---- files that go away in mid-run


def table(name: str, change: Callable[[Path], object]) -> Damage:
    return lambda folder: change(folder / name)


def other(path: Path) -> None:
    path.with_name("other").write_text("step,split\n1,test\n", encoding="utf-8")
    path.with_name("other").replace(path)


def copied(path: Path) -> None:
    """As editors write a file."""
    shutil.copy(path, path.with_name("other"))
    path.with_name("other").replace(path)


def events(change: Callable[[Path], object]) -> Damage:
    return lambda folder: change(next(folder.glob("events.out.tfevents.*")))


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def linked(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def moved(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


def renewed(folder: Path) -> None:
    moved(folder)
    folder.mkdir()


DAMAGE: dict[str, tuple[str, Damage]] = {  # the name that is said, and what is done
    "metrics.csv removed": ("metrics.csv", table("metrics.csv", Path.unlink)),
    "metrics.csv replaced": ("metrics.csv", table("metrics.csv", other)),
    "metrics.csv replaced by a copy": ("metrics.csv", table("metrics.csv", copied)),
    "metrics.csv emptied": ("metrics.csv", table("metrics.csv", emptied)),
    "timing.csv removed": ("timing.csv", table("timing.csv", Path.unlink)),
    "timing.csv a link to nothing": ("timing.csv", table("timing.csv", linked)),
    "events removed": ("events.out.tfevents", events(Path.unlink)),
    "events emptied": ("events.out.tfevents", events(emptied)),
    "run.json removed": ("run.json", table("run.json", Path.unlink)),
    "run.json emptied": ("run.json", table("run.json", emptied)),
    "run.json replaced": ("run.json", table("run.json", other)),
    "folder renamed": ("mine", moved),
    "folder renamed and made again": ("mine", renewed),
    "folder removed": ("mine", shutil.rmtree),
}


def strike(damage: Damage, seed: int, at: int) -> Callable[[], None]:
    """Damage the directory of the run with this seed as it has been evaluated at a step."""

    def prepare() -> None:
        evaluate = train.evaluate

        def struck(member: train.Member, stack: Any, step: int, *others: Any) -> None:
            evaluate(member, stack, step, *others)
            if (member.config.seed, step) == (seed, at):
                damage(member.launch.directory)

        train.evaluate = struck

    return prepare


@pytest.fixture
def unstruck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "evaluate", train.evaluate)  # put back afterwards


AT_THE_END = ("metrics.csv removed", "metrics.csv replaced by a copy", "events removed", "folder renamed")


@pytest.mark.usefixtures("unstruck")
@pytest.mark.parametrize(("what", "at"), [*((what, 20) for what in DAMAGE), *((what, 60) for what in AT_THE_END)])
def test_a_run_that_lost_a_file_has_failed(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch, what: str, at: int) -> None:
    (name, damage), evaluate = DAMAGE[what], train.evaluate
    strike(damage, 0, at)()
    outcome = bnexp(*ALONE)
    assert outcome.status == 1, outcome
    [line] = outcome.err.splitlines()
    assert name in line
    assert not files_of("."), "none says that it is finished"
    monkeypatch.setattr(train, "evaluate", evaluate)
    if what in ("run.json emptied", "run.json replaced"):  # nobody knows any more which run that was
        assert bnexp(*ALONE).status == 2
        shutil.rmtree("mine")
    again = bnexp(*(ALONE if "run.json" in what or not Path("mine/run.json").exists() else ("resume", "mine")))
    assert again.status == 0, again
    assert files_of("mine") == whole(ALONE), "anew, where there was no checkpoint"


@pytest.mark.usefixtures("unstruck")
def test_a_run_whose_kept_checkpoints_are_gone_has_failed(bnexp: Bnexp) -> None:
    strike(lambda folder: (folder / "checkpoint-000000010.safetensors").unlink(), 0, 20)()
    outcome = bnexp(*ALONE, "eval.keep=true")
    assert outcome.status == 1
    assert "checkpoint-000000010.safetensors" in outcome.err
    assert not files_of(".")


@pytest.mark.usefixtures("unstruck")
@pytest.mark.parametrize("what", [what for what in DAMAGE if "csv" in what])
def test_a_run_with_checkpoints_says_which_table_it_lacks(bnexp: Bnexp, what: str) -> None:
    (name, damage), expected = DAMAGE[what], whole(ALONE)
    strike(damage, 0, 40)()
    assert bnexp(*ALONE, OFTEN).status == 1
    assert [*Path("mine").glob("resume-*.sha256")]
    again = bnexp("resume", "mine")
    if what == "metrics.csv replaced by a copy":  # all rows up to the checkpoint are in it
        assert again.status == 0
        assert files_of("mine") == expected
        return
    assert again.status == 1
    assert f"mine/{name}" in again.err.splitlines()[-1]
    assert not files_of("mine")


@pytest.mark.parametrize("name", ["metrics.csv", "timing.csv"])
def test_a_table_with_a_gap_is_not_gone_on_from(bnexp: Bnexp, name: str) -> None:
    """An older copy was put in its place while nothing ran."""
    assert in_child((*ALONE, OFTEN), strike(lambda _: os._exit(9), 0, 40)) == 9
    path = Path("mine", name)
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:3]), encoding="utf-8")
    again = bnexp("resume", "mine")
    assert again.status == 1
    assert f"mine/{name}" in again.err.splitlines()[-1]


def struck_by(what: str) -> Callable[[], None]:
    """For a child with workers: this befalls the run of seed 1."""

    def prepare() -> None:
        lead_forks()
        strike(DAMAGE[what][1], 1, 20)()

    return prepare


def test_in_a_sweep_on_workers_the_others_go_on() -> None:
    expected = whole(SWEEP)

    assert in_child(SWEEP, struck_by("metrics.csv removed")) == 1
    assert "1 of 3 runs failed: seed=1 (mine/seed=1/metrics.csv" in Path("said").read_text(encoding="utf-8")
    assert files_of("mine") == {name: found for name, found in expected.items() if name != "seed=1"}
    assert in_child(("resume", "mine"), lead_forks) == 0
    assert files_of("mine") == expected


@pytest.mark.extra
@pytest.mark.skipif(not has_compiler(), reason="no C++ compiler (g++ or clang++)")
def test_in_a_stack_the_others_go_on() -> None:
    words = ("train", *SHORT, "compile=true", "-m", "seed=range(3)", "executor.max_stack=3")
    words += ("executor.workers=1", "hydra.sweep.dir=mine")
    expected = whole(words)
    assert in_child(words, struck_by("folder renamed")) == 1
    assert "1 of 3 runs failed: seed=1 (mine/seed=1" in Path("said").read_text(encoding="utf-8")
    assert files_of("mine") == {name: found for name, found in expected.items() if name != "seed=1"}
    assert {run.record["stack"] for run in find_runs([Path("mine")])} == {3}


# ---- text is UTF-8

ROOT = Path(package.__file__).parent.parent
OPENING = ("open", "fdopen", "read_text", "write_text")


def without_encoding(path: Path) -> list[int]:
    """Lines that open a text file, or a process's output, in the machine's own encoding."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if is_without_encoding(ast.unparse(call.func).split("."), call)]


def is_without_encoding(name: list[str], call: ast.Call) -> bool:
    given = {keyword.arg for keyword in call.keywords}
    modes = {part.value for part in call.args if isinstance(part, ast.Constant)} & {"rb", "wb", "ab", "r+b"}
    opens = name[-1] in OPENING and name not in (["os", "open"], ["Image", "open"]) and not modes
    return (opens and "encoding" not in given) or bool(given & {"text", "universal_newlines"})


def test_no_file_is_opened_in_the_machines_own_encoding() -> None:
    paths = [path for folder in ("bnexp", "scripts") for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 50
    assert not {path.name: lines for path in paths if (lines := without_encoding(path))}


@pytest.mark.faults
@pytest.mark.parametrize("locale", ["C", "en_US.ISO-8859-1"])
def test_files_are_the_same_in_every_locale(locale: str, request: pytest.FixtureRequest) -> None:
    """A comparison on workers and what goes on from it, in processes that Python starts in this encoding."""
    if request.config.getoption("--faults") < 1:
        pytest.skip("with the full count of faults")
    if locale != "C":
        made = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", str(Path(locale).absolute())]
        if not shutil.which("localedef") or subprocess.run(made, capture_output=True, check=False).returncode:
            pytest.skip("no Latin-1 locale can be made here")
    settings = {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LOCPATH": os.getcwd()}
    words = (*SHORT, "compile=false", "norm=none,batch", "seed=0,1", *SWEEP[-2:])
    for command in (("compare", *words), ("resume", "mine")):
        done = subprocess.run(
            [sys.executable, "-m", "bnexp", *command], capture_output=True, env=os.environ | settings, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\\u" not in done.stdout
        assert files_of("mine") == whole(("train", "-m", *words))
        Path("mine/norm=batch,seed=1/summary.json").unlink()
    for path in (path for path in Path("mine").rglob("*") if path.suffix in (".md", ".json", ".html", ".csv", ".yaml")):
        path.read_text(encoding="utf-8")
    assert "−" in Path("mine/compare.md").read_text(encoding="utf-8")


# ---- file systems that lack an operation

FULL_DISK = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EACCES)
LACKING = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EPERM)
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EIO, errno.ESTALE, errno.ENOTTY, 524)
FOLDERS = (errno.EACCES, errno.EBADF, errno.EINVAL, errno.EISDIR)
Refuses = Callable[[Any], bool]  # of an operation's first argument


def is_folder(place: Any) -> bool:
    return Path(f"/proc/self/fd/{place}" if isinstance(place, int) else place).is_dir()


def is_file(place: Any) -> bool:
    return not is_folder(place)


def is_old(place: Any) -> bool:
    return Path(place).name.startswith("resume-") and Path(place).suffix != ".part"


def always(place: Any) -> bool:
    return True


# operation → module, name, of which of its arguments, error codes that a file system answers with
OPERATIONS: dict[str, tuple[Any, str, Refuses, tuple[int, ...]]] = {
    "flush a file": (os, "fsync", is_file, LACKING),
    "flush a folder": (os, "fsync", is_folder, (*LACKING, *FOLDERS)),
    "open a folder": (os, "open", is_folder, FOLDERS),
    "permissions": (os, "chmod", always, LACKING),
    "remove an old checkpoint": (os, "unlink", is_old, (errno.EBUSY, errno.EACCES, errno.EPERM)),
    "cut off a file": (os, "truncate", always, LACKING),
    "cut off an open file": (os, "ftruncate", always, LACKING),
    "room on the disk": (os, "statvfs", always, (errno.ENOSYS, errno.EACCES)),
    "lock": (fcntl, "flock", always, NO_LOCKS),
}


def refusing(operation: str, code: int) -> Callable[[], None]:
    module, name, refuses, _ = OPERATIONS[operation]

    def prepare() -> None:
        real = getattr(module, name)

        def refused(place: Any, *arguments: Any, **settings: Any) -> Any:
            if refuses(place):
                raise OSError(code, os.strerror(code))
            return real(place, *arguments, **settings)

        setattr(module, name, refused)

    return prepare


@pytest.fixture
def put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, *_ in OPERATIONS.values():
        monkeypatch.setattr(module, name, getattr(module, name))


OPTIONAL = [operation for operation in OPERATIONS if operation not in ("lock", "cut off a file")]


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize("operation", OPTIONAL)
def test_what_a_file_system_lacks_is_done_without(bnexp: Bnexp, operation: str) -> None:
    expected = whole(ALONE)
    refusing(operation, OPERATIONS[operation][3][0])()
    outcome = bnexp(*ALONE, OFTEN)
    assert outcome.status == 0, outcome
    told = operation in ("flush a file", "flush a folder", "open a folder")
    assert ["mine" in line for line in outcome.err.splitlines()] == [True] * told, "said once"
    assert files_of("mine") == expected


@pytest.mark.usefixtures("put_back")
def test_a_table_is_shortened_where_no_file_can_be_cut_off(bnexp: Bnexp) -> None:
    """Of a run killed as it had written a row that its last checkpoint doesn't know of."""
    assert in_child((*ALONE, OFTEN), strike(lambda _: os._exit(9), 0, 40)) == 9
    expected = whole(ALONE)
    refusing("cut off a file", errno.ENOSYS)()
    assert bnexp("resume", "mine").status == 0
    assert files_of("mine") == expected


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize("code", FULL_DISK)
def test_a_flush_that_fails_is_no_lack(bnexp: Bnexp, code: int) -> None:
    refusing("flush a file", code)()
    outcome = bnexp(*ALONE)
    assert outcome.status == 1
    assert not files_of("mine")


@pytest.mark.usefixtures("put_back")
@pytest.mark.parametrize("code", NO_LOCKS)
@pytest.mark.parametrize("words", [ALONE, SWEEP])
def test_without_locks_nothing_is_begun(bnexp: Bnexp, words: tuple[str, ...], code: int) -> None:
    refusing("lock", code)()
    outcome = bnexp(*words)
    assert outcome.status == 2
    [line] = outcome.err.splitlines()
    assert "mine" in line
    assert ("hydra.sweep.dir=" if "-m" in words else "hydra.run.dir=") in line
    assert not [*Path().iterdir()]


@pytest.mark.usefixtures("put_back")
def test_a_download_without_locks_names_the_root(bnexp: Bnexp) -> None:
    refusing("lock", errno.ENOLCK)()
    outcome = bnexp("data", "fetch", "dataset=mnist", "dataset.root=sets")
    assert outcome.status == 2
    [line] = outcome.err.splitlines()
    assert "dataset.root=" in line
    assert not [*Path().iterdir()]


@pytest.mark.usefixtures("put_back")
def test_a_lock_refused_as_smb_does_is_somebody_elses(bnexp: Bnexp) -> None:
    refusing("lock", errno.EACCES)()
    outcome = bnexp(*ALONE)
    assert outcome.status == 2
    assert "is in use" in outcome.err


def hold(directory: Path) -> None:
    """Lock a directory until this process is killed."""
    lock = Lock(directory)
    Path("held").touch()
    time.sleep(60)
    lock.release()


def test_a_lock_ends_with_its_process_and_keeps_its_holders_name() -> None:
    place = Path("mine").absolute()
    pid = start(lambda: hold(place) or 0)
    await_that(Path("held").exists, pid)
    for _ in range(2):  # the first rival has not wiped the holder's name
        with pytest.raises(ConfigError, match=f"is in use: process {pid} on "):
            Lock(place)
    kill(pid, signal.SIGKILL)
    assert end_of(pid) == -signal.SIGKILL
    with Lock(place), Lock(place):  # a process may hold it more than once
        assert in_child_locked(place)
    assert not in_child_locked(place)


def in_child_locked(place: Path) -> bool:
    """Whether another process cannot have the directory."""

    def attempt() -> int:
        try:
            Lock(place).release()
        except ConfigError:
            return 1
        return 0

    return end_of(start(attempt)) == 1


@pytest.mark.parametrize("total", [0, 2**30])
def test_a_disk_without_a_size_is_not_full(bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch, total: int) -> None:
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(total, total, 0))
    assert bnexp(*ALONE).status == (2 if total else 0)


@pytest.mark.faults
def test_file_systems(times: Times, tell: Tell) -> None:
    chance, refused, same = random.Random(9), 0, 0
    for number in range(count := times(60)):
        lacking = {operation for operation in OPERATIONS if chance.random() < (0.1 if operation == "lock" else 0.5)}
        begin = [refusing(operation, chance.choice(OPERATIONS[operation][3])) for operation in sorted(lacking)]
        words = (*(SWEEP if number % 3 == 2 else ALONE), "checkpoint.every_seconds=0.01")

        def prepare(begin: list[Callable[[], None]] = begin) -> None:
            for refuse in (lead_forks, *begin):
                refuse()

        expected = whole(words)
        Path("said").unlink(missing_ok=True)
        status, said = in_child(words, prepare), Path("said").read_text(encoding="utf-8")
        assert "Traceback" not in said, (lacking, said)
        assert status == (2 if "lock" in lacking else 0), (lacking, said)
        if status:
            assert not Path("mine").exists()
            refused += 1
            continue
        same += files_of("mine") == expected
        shutil.rmtree("mine")
    tell(
        f"{count} file systems that lack some of {len(OPERATIONS)} operations: on {same} runs and sweeps ended in the "
        f"same bytes, {refused} without locks were refused before anything was written"
    )
    assert same + refused == count
