"""Commands in processes of their own, which can be killed: forks, which need no seconds to import torch."""

import importlib
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from io import StringIO
from multiprocessing import resource_tracker
from pathlib import Path
from tempfile import TemporaryDirectory

from conftest import restored

from bnexp.cli.main import run

Prepare = Callable[[], object]


def nothing() -> None:
    """What most processes do first."""


def start_child(words: tuple[str, ...], prepare: Prepare = nothing) -> int:
    """The command's process; what it says goes to the file `said`."""
    if words[0] == "train":
        compose_once(tuple(word for word in words if not word.startswith(("hydra.", "seed="))))
    return start(lambda: run([*words]), prepare)


@cache
def compose_once(words: tuple[str, ...]) -> None:
    """Choices that children then have composed, and the data set that they have loaded: 0.1 s and more for each."""
    import_everything()
    if "compile=true" in words:
        import_compiler()
    with restored(), redirect_stdout(StringIO()):
        run([*words, "seed=0,1" if "-m" in words else "seed=0", "dry_run=true"])


@cache
def import_everything() -> None:
    """By a run, since most of it is imported when it is needed: three seconds that no child has to spend."""
    resource_tracker.ensure_running()  # or it would be among the children of who has workers
    with restored(), TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        run(["train", "dataset=digits", "steps=1", "eval.first_every=1", f"hydra.run.dir={folder}/run"])


def import_compiler() -> None:
    """Two seconds more."""
    for name in ("torch._dynamo", "torch._inductor.compile_fx"):
        importlib.import_module(name)


def run_here(words: tuple[str, ...]) -> int:
    """The command in this process, which takes less than one of its own."""
    with restored(), open("said", "a", buffering=1) as said, redirect_stdout(said), redirect_stderr(said):
        return run([*words])


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


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def await_that(happened: Callable[[], object], pid: int) -> None:
    """Or the end of this process, which would have made it happen."""
    while is_alive(pid) and not happened():
        time.sleep(0.01)


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
