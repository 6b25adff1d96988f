"""Commands in processes of their own, which can be killed: forks, which need no seconds to import torch."""

import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from conftest import restored

from bnexp.cli import run

Prepare = Callable[[], object]


def nothing() -> None:
    """What most processes do first."""


def start_child(words: tuple[str, ...], prepare: Prepare = nothing) -> int:
    """The command's process; what it says goes to the file `said`."""
    return start(lambda: run([*words]), prepare)


@cache
def import_everything() -> None:
    """By a run, since most of it is imported when it is needed: three seconds that no child has to spend."""
    with restored(), TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        run(["train", "dataset=digits", "steps=1", "eval.first_every=1", f"hydra.run.dir={folder}/run"])
        run(["report", f"{folder}/run"])


def start(task: Callable[[], int], prepare: Prepare = nothing) -> int:
    import_everything()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the parent's threads are TensorBoard's writers, at rest
        pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        sys.stdout = sys.stderr = said = open("said", "a", buffering=1)  # noqa: SIM115 - until it ends
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        prepare()
        status = task()
    finally:
        os._exit(status)


def end_of(pid: int) -> int:
    """Exit status; of a signal, its number below 0."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(words: tuple[str, ...], prepare: Prepare = nothing) -> int:
    return end_of(start_child(words, prepare))


def kill(pid: int, signum: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signum)


def lead_forks() -> None:
    """For a child that will have workers: a group of its own, and workers that are forks as well."""
    os.setsid()
    context = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: context  # type: ignore[assignment,misc,return-value]


def children_of(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def await_end_of_group(group: int) -> None:
    """Of every thread: one that is still on its way out keeps its process's locks."""
    while group in {number for path in Path("/proc").glob("[0-9]*/task/[0-9]*/stat") for number in group_alive(path)}:
        time.sleep(0.02)


def group_alive(path: Path) -> list[int]:
    try:
        state, _, group = path.read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return []
    return [] if state == "Z" else [int(group)]
