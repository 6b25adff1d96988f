"""Functions that are compiled once: for all stacks of a process that share a graph, and on disk for later processes."""

import functools
import hashlib
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

import bnexp
from bnexp.runs.cache import VARIABLE, Cache, open_cache, read_kept, remove_scratch, write_kept
from bnexp.runs.plugins import plugin_places
from bnexp.training.torch_internals import (
    compile_ahead,
    compiler_directory,
    load_compiled,
    save_compiled,
    set_up_compiler,
)

log = logging.getLogger("bnexp")

LONGEST = 200  # characters of a compiler's message
WORKS = "compiler-"  # beginning of the names of the records that a compiler works


class CompileError(RuntimeError):
    """A function, such as a training step, could not be compiled, or there is no directory for compiled code."""


class Compiled:
    """A function that is compiled at its first call.

    On a CPU it is compiled ahead of time if torch can do that. Such code does not check its arguments, so every call
    must pass tensors of the same shapes, strides and types as the first.

    key: on a CPU, the compiled function is saved to disk under this key, from where later processes load it; "" saves
    nothing, and on a GPU it has no effect. captured: variables of the function's closure, by name, that are not saved
    with the code; the loading process passes its own.
    """

    def __init__(
        self, function: Callable[..., Any], device: torch.device, key: str = "", captured: dict[str, Any] | None = None
    ) -> None:
        self.function, self.device, self.key, self.captured = function, device, key, captured or {}
        self.ready: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Call the compiled function. The first call may raise CompileError."""
        return self.ready(*arguments) if self.ready is not None else self.first_call(arguments)

    def first_call(self, arguments: tuple[Any, ...]) -> Any:
        """Call the function that is saved on disk; if there is none or it fails, compile it, call it and save it.

        A call that fails halfway may have changed its arguments; `Stack.warm_up` restores them. Raises CompileError if
        compiling fails, too.
        """
        cache = set_up_torch(self.device)
        path = path_of(self.key, cache) if self.key and self.device.type == "cpu" else None
        loaded = load(path, self.captured) if path else None
        if loaded is not None:
            try:
                return self.adopt(loaded, arguments)
            except Exception as error:
                log.debug("%s is compiled again: %s", path, error)
        result = self.compiled_call(arguments, cache)
        if path:
            save(self.ready, path, self.captured)
        return result

    def compiled_call(self, arguments: tuple[Any, ...], cache: Cache) -> Any:
        """Compile the function and call it; if that fails, once more with an empty directory for torch's compiler.

        The files that the compiler kept may be damaged: if the second try succeeds, they are removed, where they are in
        bnexp's own directory. If it fails too, raises CompileError.
        """
        try:
            return self.adopt(self.compile(arguments), arguments)
        except Exception as error:
            log.debug("compiled once more: %s", error)
        try:
            with empty_scratch(cache):
                result = self.adopt(self.compile(arguments), arguments)
        except Exception as error:
            forget_compiler(cache)
            remedy = "mend that and resume it, or train it anew with compile=false in another directory"
            raise CompileError(f"the training step could not be compiled ({brief(error)}): {remedy}") from error
        remove_scratch(cache)
        return result

    def adopt(self, ready: Any, arguments: tuple[Any, ...]) -> Any:
        """Call `ready`, and if that succeeds, use it for all later calls."""
        result = ready(*arguments)
        self.ready = ready
        return result

    def compile(self, arguments: tuple[Any, ...]) -> Any:
        """Return the compiled function. It is compiled now on a CPU if torch can do that, else at its first call."""
        mode = "reduce-overhead" if self.device.type == "cuda" else None  # with a CUDA graph: one launch per call
        compiled: Any = torch.compile(self.function, fullgraph=True, dynamic=False, mode=mode)
        if self.device.type != "cpu":
            return compiled
        try:
            return compile_ahead(compiled, arguments)
        except (AttributeError, RuntimeError) as error:
            log.debug("not compiled ahead of time: %s", error)
            return compiled


def set_up_torch(device: torch.device) -> Cache:
    """Set up torch's compiler, and return the directories for compiled code. Raises CompileError if there is none."""
    cache = open_cache()
    if cache.scratch is None:
        raise CompileError(f"there is no directory for compiled code ({cache.problem})")
    processes = 1 if device.type == "cpu" else None  # that compile kernels: a CPU's step is one kernel, CUDA's many
    set_up_compiler(cache.scratch, VARIABLE, compiler_command(), processes)
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # TF32 is off on purpose: steps compute in fp32
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that there is no CUDA
    return cache


def compiler_command() -> str:
    """Return the command of the C++ compiler that torch is to use: $CXX, else g++, or clang++ if g++ isn't installed.

    On macOS clang++ comes first. If neither is installed, it is the first. torch alone would look for g++ only.
    """
    names = ("clang++", "g++") if sys.platform == "darwin" else ("g++", "clang++")
    return os.environ.get("CXX") or next(filter(shutil.which, names), names[0])


@contextmanager
def empty_scratch(cache: Cache) -> Iterator[None]:
    """Make torch's compiler use an empty temporary directory for its files within a `with` block."""
    assert cache.scratch is not None
    beside = cache.scratch.parent if os.access(cache.scratch.parent, os.W_OK) else None
    with TemporaryDirectory(dir=beside) as folder, compiler_directory(folder, VARIABLE):
        yield


def forget_compiler(cache: Cache) -> None:
    """Delete the files that say that a compiler works (`try_compiler`), so that it is tested again."""
    for note in cache.kept.glob(f"{WORKS}*") if cache.kept else ():
        note.unlink(missing_ok=True)


def brief(error: Exception) -> str:
    """Return the line of an exception's text with a compiler's "error: ", else the first; 200 characters at most."""
    lines = [" ".join(line.split()) for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
    return next((line for line in lines if "error: " in line), lines[0])[:LONGEST]


# ---- compiled steps on disk


def path_of(key: str, cache: Cache) -> Path | None:
    """Return the path of a saved step, or None if nothing can be saved.

    It differs for each key, each version of bnexp's code, Python and torch, and each CPU capability, such as AVX512.
    """
    versions = [code_digest(), sys.version, torch.__version__, torch.backends.cpu.get_cpu_capability()]
    name = hashlib.sha256(json.dumps([key, *versions]).encode()).hexdigest()
    return cache.kept / name if cache.kept else None


@functools.cache
def code_digest() -> str:
    """Return the SHA-256 of the source code of bnexp and of plugins."""
    places = [Path(bnexp.__file__).parent, *plugin_places()]
    files = [path for place in places for path in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def load(path: Path, captured: dict[str, Any]) -> Any:
    """Return the compiled step that is saved in a file, or None if it can't be loaded, for whatever reason."""
    try:
        content = read_kept(path)
        return None if content is None else load_compiled(content, captured)
    except Exception as error:  # unpickling can raise any exception
        log.debug("%s is compiled again: %s", path, error)
        return None


def save(compiled: Any, path: Path, captured: dict[str, Any]) -> None:
    """Save a compiled step to a file. If that fails, only log a debug message: the next process compiles it.

    It fails for a step that was not compiled ahead of time.
    """
    try:
        with TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder, path.name)
            save_compiled(compiled, whole, captured)
            write_kept(path, whole.read_bytes())
    except Exception as error:  # pickling can raise any exception
        log.debug("%s is not kept: %s", path, error)
