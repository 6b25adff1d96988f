"""Whether this machine can compile.

An installed compiler need not work: before the first compiled run is planned, a small function is compiled in another
process, once for each compiler and version of torch.
"""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec

from bnexp.runs.cache import Cache, open_cache, without_scratch
from bnexp.training.compiler_facts import LONGEST, facts_of_compiler, program

NO_COMPILER = "no compiler (g++ or clang++; on CUDA Triton and gcc) was found"
PATIENCE = 600.0  # seconds for compiling a small function


def has_compiler(device_type: str = "cpu") -> bool:
    """Return whether a compiler is installed, working or not."""
    return missing_compiler(device_type) is None


def missing_compiler(device_type: str) -> str | None:
    """Return why there is no compiler, or None if there is. If $CXX (on CUDA $CC) is set, only that one counts."""
    variable, names = ("CC", ("gcc", "clang")) if device_type == "cuda" else ("CXX", ("g++", "clang++"))
    if device_type == "cuda" and find_spec("triton") is None:
        return NO_COMPILER
    chosen = os.environ.get(variable)
    if chosen:
        return None if shutil.which(program(chosen)) else f"{variable}={chosen} is not there"
    return None if any(map(shutil.which, names)) else NO_COMPILER


def compiler_problem(device_type: str = "cpu") -> str | None:
    """Return why nothing can be compiled on this machine, or None.

    On a CPU, the first call compiles a small function, which takes seconds. If that fails in torch's cache directory, a
    temporary one is tried, and used for the rest of the process.
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

    Success is recorded in the cache, and then the function is not compiled again. Failure is not recorded, since
    nothing would show that the cause was removed.
    """
    facts = facts_of_compiler(cache)
    note = cache.kept and cache.kept / f"compiler-{hashlib.sha256(facts.encode()).hexdigest()}"
    if note and note.exists():
        return None
    problem = run_small_function(str(cache.scratch), facts)
    if note and problem is None:
        with suppress(OSError):  # then the next process compiles the function again
            note.touch(mode=0o600)
    return problem


@functools.cache
def run_small_function(scratch: str, facts: str) -> str | None:
    """Return why a small function can't be compiled and run in another process, which may crash, or None.

    Results are cached for this process. scratch and facts are not used: they are what the result depends on.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-m", "bnexp.training.compiled"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"compiling a small function failed ({error})"
    if done.returncode == 0:
        return None
    output = done.stdout.decode(errors="replace")
    lines = [line for line in output.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
    return f"compiling a small function failed ({lines[-1][:LONGEST]})"
