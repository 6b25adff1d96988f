"""Functions that are compiled once: for all stacks of a process that share a graph, and on disk for later processes."""

import functools
import hashlib
import json
import logging
import os
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
from bnexp.training.compiler_facts import LONGEST, compiler_command, forget_compiler
from bnexp.training.torch_internals import (
    can_be_saved,
    compile_ahead,
    compiler_directory,
    load_compiled,
    save_compiled,
    set_up_compiler,
)

log = logging.getLogger("bnexp")


class CompileError(RuntimeError):
    """A step could not be compiled, although a small function could be on this machine."""


class Compiled:
    """A function that is compiled at its first call. On a CPU it is compiled ahead of time where torch can do that:
    such code does not check its arguments, so every call must pass tensors of the same shapes, strides and types as the
    first.

    key: on a CPU, the function is also saved to disk under this key, and later processes load it; on a GPU it has no
    effect. captured: variables of the function's closure that are not saved with the code; the loading process supplies
    its own.
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
        """Call what was kept on disk, or else compile. A damaged file shows here at the latest, and is replaced. A call
        that fails halfway may have changed its arguments; `Stack.warm_up` restores them.
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
        if path and can_be_saved(self.ready):
            save(self.ready, path, self.captured)
        return result

    def compiled_call(self, arguments: tuple[Any, ...], cache: Cache) -> Any:
        """Compile and call. Where that fails it is tried once more without torch's own files, which may be damaged."""
        try:
            return self.adopt(self.compile(arguments), arguments)
        except Exception as error:
            log.debug("compiled once more: %s", error)
        try:
            with empty_scratch(cache):
                result = self.adopt(self.compile(arguments), arguments)
        except Exception as error:
            forget_compiler()
            remedy = "mend that and resume it, or train it anew with compile=false in another directory"
            raise CompileError(f"the training step could not be compiled ({brief(error)}): {remedy}") from error
        remove_scratch(cache)
        return result

    def adopt(self, ready: Any, arguments: tuple[Any, ...]) -> Any:
        """Make the first call with this function, and if it succeeds all later ones."""
        result = ready(*arguments)
        self.ready = ready
        return result

    def compile(self, arguments: tuple[Any, ...]) -> Any:
        """Compile the function: on a CPU ahead of time where torch can, else when it is first called."""
        mode = "reduce-overhead" if self.device.type == "cuda" else None  # a CUDA graph: one launch a call
        compiled: Any = torch.compile(self.function, fullgraph=True, dynamic=False, mode=mode)
        if self.device.type != "cpu":
            return compiled
        try:
            return compile_ahead(compiled, arguments)
        except (AttributeError, RuntimeError) as error:
            log.debug("not compiled ahead of time: %s", error)
            return compiled


def set_up_torch(device: torch.device) -> Cache:
    """Set up torch's compiler and its directory. Raises CompileError where no directory is safe to use."""
    cache = open_cache()
    if cache.scratch is None:
        raise CompileError(f"there is no directory for compiled code ({cache.problem})")
    processes = 1 if device.type == "cpu" else None  # on a CPU there is one kernel, on CUDA there are many
    set_up_compiler(cache.scratch, VARIABLE, compiler_command(), processes)
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # off on purpose: fp32 is meant
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns that there is no CUDA
    return cache


@contextmanager
def empty_scratch(cache: Cache) -> Iterator[None]:
    """Torch's files are in an empty directory while the block runs."""
    assert cache.scratch is not None
    beside = cache.scratch.parent if os.access(cache.scratch.parent, os.W_OK) else None
    with TemporaryDirectory(dir=beside) as folder, compiler_directory(folder, VARIABLE):
        yield


def brief(error: Exception) -> str:
    """The line of a compiler's output that holds its error, else the first line."""
    lines = [" ".join(line.split()) for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
    return next((line for line in lines if "error: " in line), lines[0])[:LONGEST]


# ---- what is kept


def path_of(key: str, cache: Cache) -> Path | None:
    """The file of a kept step, another for each version of bnexp's code, Python, torch and CPU; None where the cache
    keeps nothing.
    """
    versions = [code_digest(), sys.version, torch.__version__, torch.backends.cpu.get_cpu_capability()]
    name = hashlib.sha256(json.dumps([key, *versions]).encode()).hexdigest()
    return cache.kept / name if cache.kept else None


@functools.cache
def code_digest() -> str:
    """SHA-256 of this package's code."""
    files = sorted(Path(bnexp.__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def load(path: Path, captured: dict[str, Any]) -> Any:
    """The compiled step in a file, or None: whatever is wrong with the file, the step can be compiled again."""
    try:
        content = read_kept(path)
        return None if content is None else load_compiled(content, captured)
    except Exception as error:  # unpickling raises what it likes
        log.debug("%s is compiled again: %s", path, error)
        return None


def save(compiled: Any, path: Path, captured: dict[str, Any]) -> None:
    """Keep a compiled step in a file; where that fails it is compiled again next time."""
    try:
        with TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder, path.name)
            save_compiled(compiled, whole, captured)
            write_kept(path, whole.read_bytes())
    except Exception as error:  # pickling raises what it likes
        log.debug("%s is not kept: %s", path, error)


def main() -> int:
    """Compile a small function, run it forward and backward, and compare with the uncompiled one: what another process
    does for `compiler_problem`. Returns the exit status.
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
