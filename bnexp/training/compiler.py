"""Whether this machine can compile.

An installed compiler need not work: before the first compiled run is planned, a small function is compiled in another
process, once for each compiler and version of torch.
"""

import functools
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import torch

from bnexp.runs.cache import Cache, open_cache, without_scratch
from bnexp.training.compiled import LONGEST, WORKS, Compiled, brief, compiler_command

NO_COMPILER = "no compiler (g++ or clang++; on CUDA Triton and gcc) was found"
PATIENCE = 600.0  # seconds for compiling a small function


def has_compiler(device_type: str = "cpu") -> bool:
    """Return whether a compiler is installed, working or not."""
    return missing_compiler(device_type) is None


def missing_compiler(device_type: str) -> str | None:
    """Return why there is no compiler or, on CUDA, no Triton; None if all is there.

    If $CXX (on CUDA $CC) is set, only that compiler counts.
    """
    variable, names = ("CC", ("gcc", "clang")) if device_type == "cuda" else ("CXX", ("g++", "clang++"))
    if device_type == "cuda" and find_spec("triton") is None:
        return NO_COMPILER
    chosen = os.environ.get(variable)
    if chosen:
        return None if shutil.which(program(chosen)) else f"{variable}={chosen} is not there"
    return None if any(map(shutil.which, names)) else NO_COMPILER


def program(command: str) -> str:
    """Return the program that a command starts, such as "ccache" for "ccache g++ -m64"; "" if there is none."""
    try:
        return shlex.split(command)[0]
    except (ValueError, IndexError):
        return ""


def compiler_problem(device_type: str = "cpu") -> str | None:
    """Return why nothing can be compiled on this machine, or None.

    On a CPU, a small function is compiled, which takes seconds, unless it is on record that this works. If it fails in
    torch's cache directory, a temporary one is tried, and used for the rest of the process. On other devices, it
    suffices that a compiler is installed.
    """
    missing = missing_compiler(device_type)
    if missing or device_type != "cpu":
        return missing
    cache = open_cache()
    if cache.scratch is None:
        return cache.problem
    problem = try_compiler(cache)
    if problem and not cache.private:  # for example, if the file system doesn't allow loading code
        cache = without_scratch(f"{cache.scratch}: {problem}")
        problem = try_compiler(cache) if cache.scratch else cache.problem
    return problem


def try_compiler(cache: Cache) -> str | None:
    """Return why a small function can't be compiled with these directories, or None.

    Success is recorded in the cache, and then the function is not compiled again. Failure is remembered by this process
    alone, since no record would show that the cause was removed.
    """
    facts = facts_of_compiler(cache)
    note = cache.kept and cache.kept / f"{WORKS}{hashlib.sha256(facts.encode()).hexdigest()}"
    if note and note.exists():
        return None
    problem = run_small_function(str(cache.scratch), facts)
    if note and problem is None:
        with suppress(OSError):  # then the next process compiles the function again
            note.touch(mode=0o600)
    return problem


def facts_of_compiler(cache: Cache) -> str:
    """Return what decides whether a compiler works, as JSON: versions of torch and Python, the machine, the compiler's
    command, path, time and size, and the directory for torch's files, or "" for a temporary one.
    """
    command = compiler_command()
    path = Path(shutil.which(program(command)) or "").resolve()
    status = path.stat()
    place = "" if cache.private else str(cache.scratch)
    versions = [torch.__version__, sys.version, torch.backends.cpu.get_cpu_capability(), platform.platform()]
    return json.dumps([*versions, command, str(path), status.st_mtime_ns, status.st_size, place])


@functools.cache
def run_small_function(scratch: str, facts: str) -> str | None:
    """Return why a small function can't be compiled and run in another process, which may crash, or None.

    Results are cached for this process. scratch and facts are not used: they are what the result depends on.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-m", __name__]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"compiling a small function failed ({error})"
    if done.returncode == 0:
        return None
    output = done.stdout.decode(errors="replace")
    lines = [line for line in output.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
    return f"compiling a small function failed ({lines[-1][:LONGEST]})"


def main() -> int:
    """Compile a small function with its gradient, and compare the result with the uncompiled one.

    `run_small_function` runs this in another process. Prints what went wrong, and returns the exit status: 0 or 1.
    """

    def loss(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ weight).square().mean()

    weight, x = torch.linspace(-1, 1, 12).reshape(4, 3), torch.linspace(-2, 2, 20).reshape(5, 4)
    gradient = torch.func.grad(loss)
    try:
        compiled = Compiled(gradient, torch.device("cpu"))(weight, x)
    except Exception as error:
        print(brief(error.__cause__ if isinstance(error.__cause__, Exception) else error))
        return 1
    if not torch.allclose(compiled, gradient(weight, x), atol=1e-5):
        print("it computed something else")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
