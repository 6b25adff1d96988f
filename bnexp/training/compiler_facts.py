"""Which C++ compiler is used, and what is remembered of it."""

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
    """The C++ compiler for torch, which by itself would look for g++ alone: $CXX, else one that is installed."""
    names = ("clang++", "g++") if sys.platform == "darwin" else ("g++", "clang++")
    return os.environ.get("CXX") or next(filter(shutil.which, names), names[0])


def program(command: str) -> str:
    """The program that a command starts: "ccache" of "ccache g++ -m64"."""
    try:
        return shlex.split(command)[0]
    except (ValueError, IndexError):
        return ""


def forget_compiler() -> None:
    """Remove the notes of success, after a compiler that had compiled the small function has failed."""
    kept = open_cache().kept
    for note in kept.glob("compiler-*") if kept else ():
        note.unlink(missing_ok=True)


def facts_of_compiler(cache: Cache) -> str:
    """What it depends on whether a compiler works, as JSON."""
    command = compiler_command()
    path = Path(shutil.which(program(command)) or "").resolve()
    status = path.stat()
    place = "" if cache.private else str(cache.scratch)
    versions = [torch.__version__, sys.version, torch.backends.cpu.get_cpu_capability(), platform.platform()]
    return json.dumps([*versions, command, str(path), status.st_mtime_ns, status.st_size, place])
