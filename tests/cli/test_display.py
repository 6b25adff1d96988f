"""What shows how runs get on can cost nothing but what it shows: readers that leave, streams that are closed or full,
encodings that lack characters, displays that raise. Whatever happens there, runs end in the same bytes.
"""

import os
import pty
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from children import Prepare, end_of, import_everything, in_child, lead_forks, start
from conftest import Bnexp, Tell, Times

from bnexp.cli.main import main
from bnexp.runs import console
from bnexp.runs.record import find_runs
from bnexp.sweeps import display

ALONE = ("train", "dataset=digits", "steps=60", "eval.first_every=10", "threads=1", "arch.hidden=[8]", "compile=false")
SWEEP = (*ALONE, "-m", "norm=none,batch", "seed=0,1", "executor.workers=2")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "_display_failed", False)


def files_of(folder: str) -> dict[str, list[bytes]]:
    """Of the runs below, by their directories' names, what must not differ."""
    names = ("metrics.csv", "checkpoint.safetensors")
    runs = find_runs([Path(folder)])
    assert {run.summary["status"] for run in runs} == {"finished"}
    return {run.directory.name: [(run.directory / name).read_bytes() for name in names] for run in runs}


@cache
def whole(words: tuple[str, ...]) -> dict[str, list[bytes]]:
    """Of a command that prints into a file."""
    import_everything()
    with TemporaryDirectory() as folder, chdir(folder):
        assert in_child((*words, "hydra.run.dir=mine", "hydra.sweep.dir=mine"), lead_forks) == 0
        return files_of("mine")


# ---- processes with streams as a shell makes them

Streams = dict[int, int | None]  # number of a standard stream → what it is a copy of; None: closed


def as_started(streams: Streams, encoding: str = "utf-8", unused: int | None = None) -> Prepare:
    """Descriptors, and what Python makes of them as it starts. `unused`: the reader's end of a pipe."""

    def prepare() -> None:
        lead_forks()
        if unused is not None:
            os.close(unused)
        names = ("stdin", "stdout", "stderr")
        for number, handle in streams.items():
            if handle is None:
                os.close(number)
                setattr(sys, names[number], None)
            else:
                os.dup2(handle, number)
                setattr(sys, names[number], open(number, "w", 1, encoding=encoding, closefd=False))  # noqa: SIM115

    return prepare


def start_main(words: Sequence[str], prepare: Prepare) -> int:
    """The process of a command as it is called from a shell; its number."""

    def task() -> int:
        sys.argv = ["bnexp", *words]
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 99

    return start(task, prepare)


def read_some(handle: int, size: int) -> bytes:
    """Until so many bytes have come, or the writer has ended (EIO is a terminal's end)."""
    found = b""
    with suppress(OSError):
        while len(found) < size and (part := os.read(handle, size - len(found))):
            found += part
    return found


def left_by_its_reader(words: Sequence[str], size: int, terminal: bool = False, encoding: str = "utf-8") -> int:
    """Exit status of a command that prints to a pipe, or a terminal, which is gone after so many bytes."""
    reader, writer = pty.openpty() if terminal else os.pipe()
    if not size:
        os.close(reader)
    pid = start_main(words, as_started({1: writer, 2: writer}, encoding, reader if size else None))
    os.close(writer)
    if size:
        read_some(reader, size)
        os.close(reader)
    return end_of(pid)


def printing_to(words: Sequence[str], streams: Streams, encoding: str = "utf-8") -> int:
    return end_of(start_main(words, as_started(streams, encoding)))


@pytest.mark.parametrize("size", [0, 100])
def test_a_reader_that_leaves_costs_a_sweep_nothing(size: int) -> None:
    expected = whole(SWEEP)
    assert left_by_its_reader((*SWEEP, "hydra.sweep.dir=mine"), size) == 0
    assert files_of("mine") == expected


@pytest.mark.parametrize("words", [("--help",), ("train", "--cfg", "job"), ("data", "status")])
def test_a_reader_that_leaves_an_answer(words: tuple[str, ...]) -> None:
    assert left_by_its_reader(words, 0) == 0


def test_an_answer_that_nobody_reads_leaves_no_complaint_as_the_interpreter_ends() -> None:
    process = subprocess.Popen([sys.executable, "-m", "bnexp"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert (process.stderr and process.stderr.read(), process.wait()) == (b"", 0)


def test_a_failure_that_nobody_reads_keeps_its_status() -> None:
    assert left_by_its_reader(("train", "norm=nothing"), 0) == 2
    assert printing_to(("train", "norm=nothing"), {1: None, 2: None}) == 2


def pictures() -> tuple[str, ...]:
    from PIL import Image  # noqa: PLC0415

    for split, shade in ((split, shade) for split in ("train", "test") for shade in (40, 200)):
        folder = Path("pictures", split, str(shade))
        folder.mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (8, 8), (shade + number,) * 3).save(folder / f"{number}.png")
    return ("dataset=image_folder", "dataset.path=pictures", "dataset.size=8", "dataset.validation=2", "batch_size=4")


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams(closed: tuple[int, ...]) -> None:
    words = (*ALONE, *pictures(), "dataset.root=kept", "hydra.run.dir=mine")
    assert printing_to(words, dict.fromkeys(closed)) == 0
    assert files_of("mine")
    kept = b"".join(path.read_bytes() for path in Path("mine").iterdir() if path.is_file())
    assert b"test accuracy" in kept, "its log"
    assert b"\xe2\x86\x92 mine" not in kept, "what was printed is in no file that took the stream's number"


def test_a_full_disk_under_what_is_printed() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    expected = whole(SWEEP)
    assert printing_to((*SWEEP, "hydra.sweep.dir=mine"), {1: full, 2: full}) == 0
    os.close(full)
    assert files_of("mine") == expected


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "koi8-r"])
def test_encodings_that_lack_characters(encoding: str) -> None:
    text = printed((*ALONE, "hydra.run.dir=mine"), encoding)
    assert "-> mine" in text
    assert files_of("mine") == whole(ALONE)


def printed(words: Sequence[str], encoding: str) -> str:
    """What a command that succeeds prints in an encoding."""
    said = os.open("printed", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    assert printing_to(words, {1: said, 2: said}, encoding) == 0
    os.close(said)
    return Path("printed").read_bytes().decode(encoding)


def test_a_comparison_in_ascii(no_figures: None) -> None:
    """The table on the screen is spelled, the one in the file isn't."""
    text = printed(("compare", *SWEEP[1:7], *SWEEP[8:], "hydra.sweep.dir=mine"), "ascii")
    assert "- control" in text
    assert "\\u" not in text
    assert "− control" in Path("mine/compare.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["full", "a folder"])
def test_a_log_that_cannot_be_written_is_done_without(kind: str) -> None:
    Path("mine").mkdir()
    log = Path("mine/bnexp.log")
    log.symlink_to("/dev/full") if kind == "full" else log.mkdir()
    expected = whole(ALONE)
    text = printed((*ALONE, "hydra.run.dir=mine"), "utf-8")
    assert "Traceback" not in text
    assert "bnexp.log" in text
    assert files_of("mine") == expected


# ---- displays that raise

ERRORS: list[BaseException] = [OSError(5, "no"), BrokenPipeError(32, "no"), SystemExit(1)]
ERRORS += [ValueError("no"), RuntimeError("no"), KeyError("no"), UnicodeEncodeError("ascii", "→", 0, 1, "no")]
OF_A_RUN = [(display.Display, "refresh"), (display.RunState, "refresh")]
OF_A_SWEEP = [*OF_A_RUN, (display.Display, "line"), (display.Display, "tally")]
PRINTING = [(console.Console, "print")]


def both(first: Prepare, second: Prepare) -> Prepare:
    def prepare() -> None:
        first()
        second()

    return prepare


@dataclass(frozen=True)
class Raising:
    """From its n-th call on, a method raises: for good, or that one time."""

    owner: type
    name: str
    error: BaseException
    first: int = 1
    last: int = 10**9

    def begin(self) -> None:
        real, calls = getattr(self.owner, self.name), [0]

        def raises(*arguments: Any, **settings: Any) -> Any:
            calls[0] += 1
            if self.first <= calls[0] <= self.last:
                raise self.error
            return real(*arguments, **settings)

        setattr(self.owner, self.name, raises)


@pytest.mark.parametrize(("owner", "name"), [*OF_A_RUN, *PRINTING])
def test_a_runs_display_that_raises(owner: type, name: str, bnexp: Bnexp, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = whole(ALONE)
    monkeypatch.setattr(owner, name, getattr(owner, name))  # put back afterwards
    Raising(owner, name, ValueError("no")).begin()
    outcome = bnexp(*ALONE, "hydra.run.dir=mine")
    assert outcome.status == 0
    assert files_of("mine") == expected
    assert len(outcome.err.splitlines()) == (name != "print"), "said once"


@pytest.mark.parametrize(("owner", "name"), OF_A_SWEEP[:2])
def test_a_sweeps_display_that_raises(owner: type, name: str) -> None:
    expected = whole(SWEEP)
    raising = Raising(owner, name, RuntimeError("no"))
    assert in_child((*SWEEP, "hydra.sweep.dir=mine"), both(lead_forks, raising.begin)) == 0
    assert files_of("mine") == expected


def test_a_table_that_cannot_be_drawn_on_a_terminal() -> None:
    """The thread that draws it goes on, and so does the sweep."""
    expected = whole(SWEEP)
    reader, writer = pty.openpty()
    raising = Raising(display.Display, "table", ZeroDivisionError("no"))
    pid = start_main((*SWEEP, "hydra.sweep.dir=mine"), both(as_started({1: writer}, unused=reader), raising.begin))
    os.close(writer)
    text = read_some(reader, 10**6).decode()
    os.close(reader)
    assert end_of(pid) == 0
    assert "4 runs" in text
    assert "Traceback" not in text
    assert files_of("mine") == expected


# ---- all of it, at random

ENCODINGS = ("ascii", "latin-1", "cp1252", "koi8-r", "shift_jis", "cp037", "utf-16", "utf-8")


def disturbed(words: Sequence[str], kind: str, chance: random.Random) -> int:
    """Exit status of a command whose display is disturbed in one way."""
    if kind == "raises":
        owner, name = chance.choice([*(OF_A_SWEEP if "-m" in words else OF_A_RUN), *PRINTING])
        first = chance.randint(1, 6)
        last = chance.choice([first, 10**9])
        raising = Raising(owner, name, chance.choice(ERRORS), first, last)
        return in_child(words, both(lead_forks, raising.begin))
    if kind in ("reader", "terminal"):
        return left_by_its_reader(words, chance.randrange(500), kind == "terminal", chance.choice(ENCODINGS))
    if kind == "closed":
        return printing_to(words, dict.fromkeys(chance.sample(range(3), chance.randint(1, 3))))
    handle = os.open("/dev/full" if kind == "full" else "printed", os.O_WRONLY | os.O_CREAT)
    streams: Streams = dict.fromkeys(chance.choice([(1,), (2,), (1, 2)]), handle)
    status = printing_to(words, streams, chance.choice(ENCODINGS))
    os.close(handle)
    return status


def test_a_terminal_without_a_size_is_told_too() -> None:
    command = [sys.executable, "-m", "bnexp", "train", "steps=foo"]
    done = subprocess.run(
        command, env=os.environ | {"COLUMNS": "0"}, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 2
    assert "steps=foo" in done.stderr


@pytest.mark.faults
def test_disturbed_displays(times: Times, tell: Tell) -> None:
    chance, kinds, same = random.Random(8), ("raises", "reader", "terminal", "closed", "full", "encoding"), 0
    for number in range(count := times(90)):
        words = SWEEP if number % 3 == 2 else ALONE
        kind = kinds[(number + number // 6) % 6]
        expected = whole(words)
        status = disturbed((*words, "hydra.run.dir=mine", "hydra.sweep.dir=mine"), kind, chance)
        assert status == 0, (number, kind, Path("said").read_text(encoding="utf-8", errors="replace")[-2000:])
        same += files_of("mine") == expected
        shutil.rmtree("mine")
    tell(
        f"{count} runs and sweeps whose display raises, whose reader leaves, whose streams are closed, full or lack "
        f"characters: {same} ended as if nothing had been, in the same bytes"
    )
    assert same == count


@pytest.mark.extra
@pytest.mark.parametrize("redirection", ["| head -3", "| head -0", ">&-", "2>&- <&-", ">/dev/full 2>&1"])
def test_as_a_shell_starts_it(redirection: str) -> None:
    """With workers as they are made outside of tests, and the interpreter's own end."""
    words = " ".join((*SWEEP, "hydra.sweep.dir=mine"))
    line = f"set -o pipefail; '{sys.executable}' -m bnexp {words} {redirection}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert files_of("mine") == whole(SWEEP)
