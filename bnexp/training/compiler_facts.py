"""Which C++ compiler is used, and the record that it works."""

import json
import os
import platform
import shlex
import shutil
import sys
from pathlib import Path

import torch

from bnexp.runs.cache import Cache, open_cache

LONGEST = 200  # characters of a compiler's message


def compiler_command() -> str:
    """Return the command of the C++ compiler that torch is to use: $CXX, else g++ or clang++, whichever is installed.

    Without this, torch would look for g++ alone.
    """
    names = ("clang++", "g++") if sys.platform == "darwin" else ("g++", "clang++")
    return os.environ.get("CXX") or next(filter(shutil.which, names), names[0])


def program(command: str) -> str:
    """Return the program that a command starts, such as "ccache" for "ccache g++ -m64"; "" if there is none."""
    try:
        return shlex.split(command)[0]
    except (ValueError, IndexError):
        return ""


def forget_compiler() -> None:
    """Delete the records that a compiler works, after it failed to compile a step."""
    kept = open_cache().kept
    for note in kept.glob("compiler-*") if kept else ():
        note.unlink(missing_ok=True)


def facts_of_compiler(cache: Cache) -> str:
    """Return everything that decides whether a compiler works, as JSON: versions, machine, command, program and
    directory.
    """
    command = compiler_command()
    path = Path(shutil.which(program(command)) or "").resolve()
    status = path.stat()
    place = "" if cache.private else str(cache.scratch)
    versions = [torch.__version__, sys.version, torch.backends.cpu.get_cpu_capability(), platform.platform()]
    return json.dumps([*versions, command, str(path), status.st_mtime_ns, status.st_size, place])
