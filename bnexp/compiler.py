"""Whether this machine can compile. Since a compiler that is found need not work, a small function is compiled before
a run is planned to be: in a process of its own, once for a compiler and a version of torch.
"""

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from bnexp.cache import Cache, open_cache, without_scratch

NO_COMPILER = "no compiler (g++ or clang++; on CUDA Triton and gcc) was found"
PATIENCE = 600.0  # seconds for a small function
LONGEST = 200  # characters of what a compiler says


def has_compiler(device_type: str = "cpu") -> bool:
    """Whether there is one, working or not."""
    return missing_compiler(device_type) is None


def missing_compiler(device_type: str) -> str | None:
    """Why there is no compiler, or None. One that the user names is the one, whatever else is there."""
    variable, names = ("CC", ("gcc", "clang")) if device_type == "cuda" else ("CXX", ("g++", "clang++"))
    if device_type == "cuda" and find_spec("triton") is None:
        return NO_COMPILER
    given = os.environ.get(variable)
    if given:
        return None if shutil.which(program(given)) else f"{variable}={given} is not there"
    return None if any(map(shutil.which, names)) else NO_COMPILER


def compiler_command() -> str:
    """The C++ compiler that torch is to call: $CXX, else what is there. Torch by itself would look for g++ alone."""
    names = ("clang++", "g++") if sys.platform == "darwin" else ("g++", "clang++")
    return os.environ.get("CXX") or next(filter(shutil.which, names), names[0])


def program(command: str) -> str:
    """Of a compiler's command, "ccache g++ -m64", what is started."""
    try:
        return shlex.split(command)[0]
    except (ValueError, IndexError):
        return ""


def compiler_problem(device_type: str = "cpu") -> str | None:
    """Why nothing can be compiled here, or None. The first time it compiles something to see, which takes seconds."""
    missing = missing_compiler(device_type)
    if missing or device_type != "cpu":
        return missing
    found = open_cache()
    if found.scratch is None:
        return found.problem
    problem = try_compiler(found)
    if problem and not found.private:  # a file system from which nothing can be loaded, say
        found = without_scratch(f"{found.scratch}: {problem}")
        problem = try_compiler(found) if found.scratch else found.problem
    return problem


def try_compiler(found: Cache) -> str | None:
    """Why a small function doesn't compile with these directories, or None. That it does is noted in the cache; that it
    doesn't is not, since nobody could tell when that is mended.
    """
    note = found.kept and found.kept / f"compiler-{digest_of_compiler(found)}"
    if note and note.exists():
        return None
    problem = run_small_function(str(found.scratch), json.dumps(facts_of_compiler(found)))
    if note and problem is None:
        with suppress(OSError):  # then it is tried again next time
            note.touch(mode=0o600)
    return problem


def forget_compiler() -> None:
    """It compiled the small function, and then something failed: it is to be tried again."""
    kept = open_cache().kept
    for note in kept.glob("compiler-*") if kept else ():
        note.unlink(missing_ok=True)


def digest_of_compiler(found: Cache) -> str:
    return hashlib.sha256(json.dumps(facts_of_compiler(found)).encode()).hexdigest()


def facts_of_compiler(found: Cache) -> list[object]:
    """What it depends on whether it works."""
    command = compiler_command()
    path = Path(shutil.which(program(command)) or "").resolve()
    state = path.stat()
    place = "" if found.private else str(found.scratch)
    versions = [torch.__version__, sys.version, torch.backends.cpu.get_cpu_capability(), platform.platform()]
    return [*versions, command, str(path), state.st_mtime_ns, state.st_size, place]


@cache
def run_small_function(scratch: str, facts: str) -> str | None:
    """Compile and run it in another process, which may crash. `scratch`, `facts`: what the answer depends on."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-P", "-m", "bnexp.compiled"]
    try:
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"compiling a small function failed ({error})"
    if done.returncode == 0:
        return None
    said = [line for line in done.stdout.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
    return f"compiling a small function failed ({said[-1][:LONGEST]})"
