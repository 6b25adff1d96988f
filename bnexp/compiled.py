"""Functions compiled once: for all stacks of a process that share the graph, and on disk for processes to come."""

import hashlib
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bnexp.cache import VARIABLE, Cache, open_cache, read_kept, remove_scratch, write_kept
from bnexp.compiler import LONGEST, compiler_command, forget_compiler

log = logging.getLogger("bnexp")


class CompileError(RuntimeError):
    """A step could not be compiled, though this machine was found to be able to."""


class Compiled:
    """A function of tensors that is compiled, or loaded, when it is first called.

    On a CPU it is compiled ahead of time, and no later call is checked against what was compiled: the guards of
    torch.compile would take 170 µs, a third of a step. So calls have to look alike; who shares it has to see to that.
    With a key it is kept on disk. `captured` names what the function has in its closure and can't be kept: it is taken
    from the process that loads it.
    """

    def __init__(
        self, function: Callable[..., Any], device: torch.device, key: str = "", captured: dict[str, Any] | None = None
    ) -> None:
        self.function, self.device, self.key, self.captured = function, device, key, captured or {}
        self.ready: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Raises CompileError, where it is the first call."""
        return self.ready(*arguments) if self.ready is not None else self.first_call(arguments)

    def first_call(self, arguments: tuple[Any, ...]) -> Any:
        """With what was kept, or compiled. What is damaged among the files shows here at the latest: then they are made
        anew. A call that breaks off may have changed its arguments; Stack.warm_up puts them back.
        """
        found = set_up_torch(self.device)
        path = place_of(self.key, found) if self.key and self.device.type == "cpu" else None
        kept = load(path, self.captured) if path else None
        if kept is not None:
            try:
                return self.adopt(kept, arguments)
            except Exception as error:
                log.debug("%s is compiled again: %s", path, error)
        result = self.compiled_call(arguments, found)
        if path and hasattr(self.ready, "save_compiled_function"):
            save(self.ready, path, self.captured)
        return result

    def compiled_call(self, arguments: tuple[Any, ...], found: Cache) -> Any:
        """If it fails it is tried once more, apart from all that torch has kept."""
        try:
            return self.adopt(self.compile(arguments), arguments)
        except Exception as error:
            log.debug("compiled once more: %s", error)
        try:
            with apart(found):
                result = self.adopt(self.compile(arguments), arguments)
        except Exception as error:
            forget_compiler()
            mended = "mend that and resume it, or train it anew with compile=false in another directory"
            raise CompileError(f"the training step could not be compiled ({brief(error)}): {mended}") from error
        remove_scratch(found)
        return result

    def adopt(self, ready: Any, arguments: tuple[Any, ...]) -> Any:
        """Take it for all calls, where it does the first."""
        result = ready(*arguments)
        self.ready = ready
        return result

    def compile(self, arguments: tuple[Any, ...]) -> Any:
        mode = "reduce-overhead" if self.device.type == "cuda" else None  # a CUDA graph: one launch a call
        compiled: Any = torch.compile(self.function, fullgraph=True, dynamic=False, mode=mode)
        if self.device.type != "cpu":
            return compiled
        try:
            found = compiled.aot_compile((arguments, {}))
        except (AttributeError, RuntimeError) as error:  # torch before 2.15 can't, or not for every graph
            log.debug("not compiled ahead of time: %s", error)
            return compiled
        found.disable_guard_check()
        return found


def set_up_torch(device: torch.device) -> Cache:
    """Its compiler's settings and directories. Raises CompileError where there is none that is safe to use."""
    found = open_cache()
    if found.scratch is None:
        raise CompileError(f"there is no directory for compiled code ({found.problem})")
    # Not every file of torch's goes where the variable says: what it takes for the default is to be the same place.
    from torch._inductor.runtime import cache_dir_utils  # noqa: PLC0415 - a second to import, and only some runs compile

    cache_dir_utils.default_cache_dir = lambda: os.environ[VARIABLE]

    import torch._dynamo.config as dynamo  # noqa: PLC0415
    import torch._inductor.config as inductor  # noqa: PLC0415
    from torch._inductor import codecache  # noqa: PLC0415

    codecache._HEADER_DIR = str(found.scratch / "precompiled_headers")
    codecache._HEADER_LOCK_DIR = str(found.scratch / "precompiled_headers" / "locks")
    # where it isn't ahead of time: one entry a graph, the defaults of 8 and 256 count all
    dynamo.recompile_limit = dynamo.accumulated_recompile_limit = 1024
    dynamo.automatic_dynamic_remote_pgo = False
    inductor.fx_graph_remote_cache = inductor.autotune_remote_cache = inductor.bundled_autotune_remote_cache = False
    if device.type == "cpu":
        inductor.compile_threads = 1  # one kernel: a pool of compilers would only cost memory
    inductor.cpp.cxx = (None, compiler_command())
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # off on purpose: fp32 is meant
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # no CUDA here is no news
    return found


@contextmanager
def apart(found: Cache) -> Iterator[None]:
    """Torch's files in an empty directory for a while, without headers precompiled."""
    from torch._inductor.utils import clear_caches  # noqa: PLC0415 - a second to import, and only some runs compile

    assert found.scratch is not None
    beside = found.scratch.parent if os.access(found.scratch.parent, os.W_OK) else None
    with TemporaryDirectory(dir=beside) as folder, torch._inductor.config.patch(cpp_cache_precompile_headers=False):
        os.environ[VARIABLE] = folder
        clear_caches()
        try:
            yield
        finally:
            os.environ[VARIABLE] = str(found.scratch)
            clear_caches()


def brief(error: Exception) -> str:
    """What a compiler said, without its command."""
    lines = [" ".join(line.split()) for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
    return next((line for line in lines if "error: " in line), lines[0])[:LONGEST]


# ---- what is kept


def place_of(key: str, found: Cache) -> Path | None:
    """Its file, or None where nothing is kept. One for each version of things."""
    versions = [code_digest(), sys.version, torch.__version__, torch.backends.cpu.get_cpu_capability()]
    name = hashlib.sha256(json.dumps([key, *versions]).encode()).hexdigest()
    return found.kept / name if found.kept else None


@cache
def code_digest() -> str:
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def load(path: Path, captured: dict[str, Any]) -> Any:
    """What was kept there, or None: whatever is wrong with it, it can be compiled again."""
    try:
        kept = read_kept(path)
        if kept is not None:
            found: Any = torch.compiler.load_compiled_function(io.BytesIO(kept), external_data=captured)
            found.disable_guard_check()
            return found
    except Exception as error:  # unpickling raises what it likes
        log.debug("%s is compiled again: %s", path, error)
    return None


def save(compiled: Any, path: Path, captured: dict[str, Any]) -> None:
    """What can't be kept, or not there, is compiled again next time."""
    try:
        with TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder, path.name)
            compiled.save_compiled_function(whole, external_data=captured)
            write_kept(path, whole.read_bytes())
    except Exception as error:  # pickling raises what it likes
        log.debug("%s is not kept: %s", path, error)


def main() -> int:
    """Compile a small function, forward and backward, and compare: what `compiler_problem` asks another process for."""

    def loss(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ weight).square().mean()

    weight, x = torch.linspace(-1, 1, 12).reshape(4, 3), torch.linspace(-2, 2, 20).reshape(5, 4)
    gradient = torch.func.grad(loss)
    try:
        found = Compiled(gradient, torch.device("cpu"))(weight, x)
    except Exception as error:
        print(brief(error.__cause__ if isinstance(error.__cause__, Exception) else error))
        return 1
    if not torch.allclose(found, gradient(weight, x), atol=1e-5):
        print("it computed something else")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
