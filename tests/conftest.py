"""What the tests share: a process put back as it was after each, and the command line, called in the process."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from bnexp.cli import run
from bnexp.runs import machine

torch.set_num_threads(1)  # as many processes run tests as there are cores


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", type=float, default=0.02, help="share of the full count of faults")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Of the full count of faults, what became of them: results/reliability.md."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    found = [value for report in reports for name, value in getattr(report, "user_properties", ()) if name == "faults"]
    if found and config.getoption("--faults") >= 1:
        made = f"`make test-faults`: torch {torch.__version__}, {machine()}, {os.cpu_count()} cores."
        lines = ["# Reliability", "", made, "", *(f"- {line}" for line in dict.fromkeys(found)), ""]
        Path(config.rootpath, "results", "reliability.md").write_text("\n".join(lines))


@pytest.fixture(autouse=True)
def restored_process() -> Iterator[None]:
    with restored():
        yield


@contextmanager
def restored() -> Iterator[None]:
    """Put back what a command changes: sys.argv, Hydra's variable, the loggers, torch's threads and denormals."""
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
