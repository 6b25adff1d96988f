"""All of torch's private and experimental interfaces that bnexp uses: a new torch may change these without notice, and
then the test of that name fails. Torch's compiler is imported when it is needed: that takes a second.
"""
# ruff: noqa: PLC0415 - the import of torch's compiler

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only

Tree = TypeVar("Tree")


def map_tensors(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Apply a function to each tensor of nested dictionaries and tuples, with those at the same place of the others."""
    mapped: Tree = tree_map(function, tree, *others)
    return mapped


def keep_in_place(tree: Any) -> None:
    """Promise the compiler that these tensors keep their place in memory. A CUDA graph then changes them there; it
    copies any other input. For tensors at another place a graph is recorded, and nothing compiled anew: no guard.
    """
    import torch._dynamo

    tree_map_only(Tensor, partial(torch._dynamo.mark_static_address, guard=False), tree)


def set_up_compiler(directory: Path, variable: str, command: str, processes: int | None) -> None:
    """Make torch's compiler call a C++ compiler by this command, keep its files in a directory, which the environment
    variable names too, and share nothing with other machines. `processes`: how many compile at once, None for torch's
    choice.
    """
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor
    from torch._inductor import codecache
    from torch._inductor.runtime import cache_dir_utils

    # Not every file goes where the variable says: torch's default has to be the same place.
    cache_dir_utils.default_cache_dir = lambda: os.environ[variable]
    codecache._HEADER_DIR = str(directory / "precompiled_headers")
    codecache._HEADER_LOCK_DIR = str(directory / "precompiled_headers" / "locks")
    # Where a step isn't compiled ahead of time: one entry a graph, and the defaults of 8 and 256 count all.
    dynamo.recompile_limit = dynamo.accumulated_recompile_limit = 1024
    dynamo.automatic_dynamic_remote_pgo = False
    inductor.fx_graph_remote_cache = inductor.autotune_remote_cache = inductor.bundled_autotune_remote_cache = False
    if processes is not None:
        inductor.compile_threads = processes
    inductor.cpp.cxx = (None, command)


@contextmanager
def compiler_directory(directory: str, variable: str) -> Iterator[None]:
    """Torch's compiler uses an empty directory while the block runs, and no precompiled headers."""
    import torch._inductor.config
    from torch._inductor.utils import clear_caches

    before = os.environ[variable]
    with torch._inductor.config.patch(cpp_cache_precompile_headers=False):
        os.environ[variable] = directory
        clear_caches()
        try:
            yield
        finally:
            os.environ[variable] = before
            clear_caches()


def compile_ahead(compiled: Any, arguments: tuple[Any, ...]) -> Any:
    """What `torch.compile` returned, compiled for arguments like these: later calls are not checked against them.
    Raises AttributeError or RuntimeError where torch, before 2.15, can't, or can't for this graph.
    """
    return without_guards(compiled.aot_compile((arguments, {})))


def load_compiled(content: bytes, captured: dict[str, Any]) -> Any:
    """Unpickle what `save_compiled` has written. `captured`: variable of the function's closure → value."""
    return without_guards(torch.compiler.load_compiled_function(io.BytesIO(content), external_data=captured))


def without_guards(compiled: Any) -> Any:
    """A function whose arguments torch doesn't check: that takes 170 µs a call, a third of a step."""
    compiled.disable_guard_check()
    return compiled


def can_be_saved(compiled: Any) -> bool:
    """Whether it was compiled ahead of time."""
    return hasattr(compiled, "save_compiled_function")


def save_compiled(compiled: Any, path: Path, captured: dict[str, Any]) -> None:
    """Pickle what `compile_ahead` returned, without the captured values."""
    compiled.save_compiled_function(path, external_data=captured)
