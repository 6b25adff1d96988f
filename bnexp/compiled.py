"""Functions compiled once: for all stacks of a process that share the graph, and on disk for processes to come."""

import hashlib
import io
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

DIGEST = 32  # bytes of a SHA-256


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
        if self.ready is None:
            self.ready = self.prepare(arguments)
        return self.ready(*arguments)

    def prepare(self, arguments: tuple[Any, ...]) -> Any:
        import torch._dynamo.config as dynamo  # noqa: PLC0415 - a second to import, and only some runs compile
        import torch._inductor.config as inductor  # noqa: PLC0415

        # where it isn't ahead of time: one entry a graph, the defaults of 8 and 256 count all
        dynamo.recompile_limit = dynamo.accumulated_recompile_limit = 1024
        inductor.compile_threads = 1  # one kernel: a pool of compilers would only cost memory
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # no CUDA here is no news
        mode = "reduce-overhead" if self.device.type == "cuda" else None  # a CUDA graph: one launch a call
        compiled: Any = torch.compile(self.function, fullgraph=True, dynamic=False, mode=mode)
        if self.device.type != "cpu":
            return compiled
        path = place_of(self.key) if self.key else None
        found = load(path, self.captured) if path else None
        if found is None:
            try:
                found = compiled.aot_compile((arguments, {}))
            except (AttributeError, RuntimeError) as error:  # torch before 2.15 can't, or not for every graph
                logging.getLogger("bnexp").debug("not compiled ahead of time: %s", error)
                return compiled
            if path:
                save(found, path, self.captured)
        found.disable_guard_check()
        return found


def place_of(key: str) -> Path:
    """Its file, beside torch's own compiled code ($TORCHINDUCTOR_CACHE_DIR). One for each version of things."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # noqa: PLC0415 - imported only where it compiles

    versions = [code_digest(), sys.version, torch.__version__, torch.backends.cpu.get_cpu_capability()]
    return Path(cache_dir(), "bnexp", hashlib.sha256(json.dumps([key, *versions]).encode()).hexdigest())


@cache
def code_digest() -> str:
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def load(path: Path, captured: dict[str, Any]) -> Any:
    """What was kept there, or None: whatever is wrong with it, it can be compiled again."""
    try:
        kept = path.read_bytes()
        if hashlib.sha256(kept[DIGEST:]).digest() == kept[:DIGEST]:
            return torch.compiler.load_compiled_function(io.BytesIO(kept[DIGEST:]), external_data=captured)
    except (OSError, RuntimeError) as error:
        logging.getLogger("bnexp").debug("%s is compiled again: %s", path, error)
    return None


def save(compiled: Any, path: Path, captured: dict[str, Any]) -> None:
    """Behind its SHA-256, whole or not at all. What can't be kept, or not there, is compiled again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder, path.name)
            compiled.save_compiled_function(whole, external_data=captured)
            kept = whole.read_bytes()
            whole.write_bytes(hashlib.sha256(kept).digest() + kept)
            os.replace(whole, path)
    except (OSError, RuntimeError) as error:
        logging.getLogger("bnexp").debug("%s is not kept: %s", path, error)
