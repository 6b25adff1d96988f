"""What the tests share: a process put back as it was after each, and the command line, called in the process.

The process that hands out the tests reads this too: what takes seconds to import is imported where it is used.
"""

import gc
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bnexp.cli.main import run
from bnexp.runs.config import DatasetConfig
from bnexp.runs.directory import machine

BEGAN = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", type=float, default=0.05, help="share of the full count of faults")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """What became of the full count of faults, and of clusters: results/reliability.md."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    faults = [value for report in reports for name, value in getattr(report, "user_properties", ()) if name == "faults"]
    if faults and config.getoption("--faults") >= 1 and config.getoption("markexpr") == "faults":
        write_reliability(config.rootpath, "make test-faults", faults)
    passed = [report.nodeid for report in terminalreporter.stats.get("passed", []) if report.when == "call"]
    files = {path.name for path in (config.rootpath / "tests" / "cluster").glob("test_*.py")}
    whole = files == {Path(node.partition("::")[0]).name for node in passed} and not config.getoption("keyword")
    if whole and not {"failed", "error"} & terminalreporter.stats.keys():
        write_reliability(config.rootpath, "make test-cluster", list(map(sentence_of, passed)))


def sentence_of(node: str) -> str:
    """What a test of a cluster tests: "Slurm: a killed process is started again"."""
    file, _, name = node.partition("::")
    program = Path(file).stem.removeprefix("test_real_").partition("_")[0]
    words, _, case = name.removeprefix("test_").partition("[")
    return f"{NAMES.get(program, program)}: {words.replace('_', ' ')}{f' ({case[:-1]})' if case else ''}"


NAMES = {"slurm": "Slurm", "ray": "Ray"}


def write_reliability(root: Path, target: str, lines: list[str]) -> None:
    """Replace the section of a target in results/reliability.md."""
    path = root / "results" / "reliability.md"
    minutes = round((time.monotonic() - BEGAN) / 60)
    made = f"{minutes} minutes: torch {version('torch')}, {machine()}, {os.cpu_count()} cores."
    section = "\n".join([f"## {target}", "", made, "", *(f"- {line}" for line in dict.fromkeys(lines)), ""])
    others = [part for part in path.read_text().split("\n## ")[1:] if not part.startswith(f"{target}\n")]
    sections = sorted([section.removeprefix("## "), *others], reverse=True)
    path.write_text("# Reliability\n" + "".join(f"\n## {part.strip()}\n" for part in sections))


Times = Callable[[int], int]


@pytest.fixture
def times(request: pytest.FixtureRequest) -> Times:
    """How often, of the full count of a fault."""
    share: float = request.config.getoption("--faults")
    return lambda full: max(1, round(full * share))


Tell = Callable[[str], None]


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """What became of the faults: a line of results/reliability.md."""
    return lambda line: record_property("faults", line)


def pytest_collection_finish() -> None:
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)  # as many processes run tests as there are cores
    torch.ones((), requires_grad=True).backward()  # if the first one were a compiler's, no fork could make another
    gc.freeze()  # a million objects of torch and of the tests, which no collection has to look at again
    gc.set_threshold(20_000, 10, 10)  # a sixth less of Hydra's time


def pytest_sessionfinish() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of a log begin with the time; what they say is tested without it."""
    monkeypatch.setattr("bnexp.runs.console.TIME", "")


@pytest.fixture(autouse=True)
def quick_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is flushed to the disk, which takes 0.1 s a run: what a process has written outlives it, and nobody pulls
    the plug. With the full count of faults the disk is as it is.
    """
    if request.config.getoption("--faults") < 1:
        monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(autouse=True)
def restored_process() -> Iterator[None]:
    with restored():
        yield


@contextmanager
def restored() -> Iterator[None]:
    """Put back what a command changes: sys.argv, Hydra's variable, the loggers, torch's threads and denormals."""
    import torch  # noqa: PLC0415

    argv, full_error, threads = sys.argv, os.environ.get("HYDRA_FULL_ERROR"), torch.get_num_threads()
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    sys.argv = argv
    os.environ.pop("HYDRA_FULL_ERROR", None)
    if full_error is not None:
        os.environ["HYDRA_FULL_ERROR"] = full_error
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture
def warm_scratch(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Torch's own files stay those of all tests, as if the user had chosen their directory, wherever steps are kept.
    What takes long to compile is its headers.
    """
    from bnexp.runs import cache  # noqa: PLC0415

    scratch = cache.open_cache().scratch
    assert scratch is not None
    monkeypatch.setenv(cache.VARIABLE, str(scratch))
    monkeypatch.setattr(cache, "_ours", ("", ""))
    return scratch


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what is in the tables: a figure takes 0.3 s."""
    for name in (
        "compare.report.plot_figure",
        "compare.landscape_report.plot_figure",
        "compare.throughput_report.rate_figure",
    ):
        monkeypatch.setattr(f"bnexp.{name}", lambda *_: None)
    monkeypatch.setattr("bnexp.compare.page.plot_svg", lambda _: "<svg></svg>")


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit status and what it wrote."""

    status: int
    out: str
    err: str


Bnexp = Callable[..., Outcome]


@pytest.fixture
def bnexp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bnexp:
    """`bnexp WORD …` from an empty directory."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Outcome:
        capsys.readouterr()
        try:
            status = run([*words])
        except SystemExit as end:  # Hydra's --help and --version leave so
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


def scalars(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """Tag → step and value (NaN equals NaN), as TensorBoard reads them; the speed's values are a clock's."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    tags: list[str] = board.Tags()["scalars"]
    return {
        tag: [(event.step, "" if tag.startswith("speed") else str(event.value)) for event in board.Scalars(tag)]
        for tag in sorted(tags)
    }


# ---- MNIST's files, with other contents

COUNTS = {"train": 600, "t10k": 100}  # a hundredth of the published files, whose sizes test_data.py has


def idx_bytes(name: str) -> bytes:
    """A file with the published header and size, and other contents."""
    part = name.split("-", maxsplit=1)[0]
    images = "images" in name
    header = (0x0803, COUNTS[part], 28, 28) if images else (0x0801, COUNTS[part])
    values = COUNTS[part] * (784 if images else 1)
    pattern = bytes(range(251 if images else 10))
    return b"".join(n.to_bytes(4, "big") for n in header) + (pattern * (values // len(pattern) + 1))[:values]


@pytest.fixture(scope="session")
def sets() -> ModuleType:
    return pytest.importorskip("bnexp.data.torchvision_sets")


@pytest.fixture(scope="session")
def fakes(tmp_path_factory: pytest.TempPathFactory, sets: ModuleType) -> Path:
    """A folder with the four files."""
    folder = tmp_path_factory.mktemp("fakes")
    for name in sets.MNIST_MD5:
        (folder / name).write_bytes(idx_bytes(name))
    return folder


@pytest.fixture
def fake_mnist(fakes: Path, sets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetConfig:
    """A data set of these files, with their sizes and MD5 in place of the published ones."""
    monkeypatch.setattr(sets, "IMAGES", COUNTS)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for path in fakes.iterdir():
        (folder / path.name).symlink_to(path)
        monkeypatch.setitem(sets.MNIST.files, path.name, sets.file_digest(path, "md5"))
    return DatasetConfig("mnist", root=str(tmp_path), validation=50)


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
