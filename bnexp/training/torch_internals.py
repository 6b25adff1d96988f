"""All private and experimental interfaces of torch that bnexp uses. A new version of torch may change them without
notice: then the test with that name fails. torch's compiler is imported only when it is needed, since that takes a
second.
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
    """Apply a function to each tensor in nested dictionaries and tuples, and return the results in the same structure.

    others: trees of the same structure, whose tensors are passed to the function as further arguments.
    """
    mapped: Tree = tree_map(function, tree, *others)
    return mapped


def keep_in_place(tree: Any) -> None:
    """Promise the compiler that these tensors stay at their address in memory.

    A CUDA graph then changes them there, whereas it copies any other input. For tensors at other addresses a CUDA graph
    is recorded again, but nothing is compiled again (`guard=False`).
    """
    import torch._dynamo

    tree_map_only(Tensor, partial(torch._dynamo.mark_static_address, guard=False), tree)


def set_up_compiler(directory: Path, variable: str, command: str, processes: int | None) -> None:
    """Make torch's compiler use a C++ compiler and a directory for its files, and share nothing with other machines.

    variable: name of an environment variable that already names the directory. command: starts the C++ compiler.
    processes: how many compile at once; None leaves this to torch.
    """
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor
    from torch._inductor import codecache
    from torch._inductor.runtime import cache_dir_utils

    # torch writes some files to its default directory, whatever the variable says: make both the same.
    cache_dir_utils.default_cache_dir = lambda: os.environ[variable]
    codecache._HEADER_DIR = str(directory / "precompiled_headers")
    codecache._HEADER_LOCK_DIR = str(directory / "precompiled_headers" / "locks")
    # A step that isn't compiled ahead of time is one entry for each graph; the default limits are 8 and 256 in all.
    dynamo.recompile_limit = dynamo.accumulated_recompile_limit = 1024
    dynamo.automatic_dynamic_remote_pgo = False
    inductor.fx_graph_remote_cache = inductor.autotune_remote_cache = inductor.bundled_autotune_remote_cache = False
    if processes is not None:
        inductor.compile_threads = processes
    inductor.cpp.cxx = (None, command)


@contextmanager
def compiler_directory(directory: str, variable: str) -> Iterator[None]:
    """Within a `with` block, make torch's compiler use another, empty directory, and no precompiled headers.

    variable: name of the environment variable that names the directory.
    """
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
    """Compile the result of `torch.compile` ahead of time for arguments like these; later calls don't check theirs.

    Raises AttributeError or RuntimeError if this version of torch can't do that, or can't for this graph.
    """
    return without_guards(compiled.aot_compile((arguments, {})))


def load_compiled(content: bytes, captured: dict[str, Any]) -> Any:
    """Unpickle a function that `save_compiled` has written. captured: variables of its closure, by name."""
    return without_guards(torch.compiler.load_compiled_function(io.BytesIO(content), external_data=captured))


def without_guards(compiled: Any) -> Any:
    """Turn off torch's check of a compiled function's arguments, and return the function.

    The check takes 170 µs per call, a third of a step.
    """
    compiled.disable_guard_check()
    return compiled


def save_compiled(compiled: Any, path: Path, captured: dict[str, Any]) -> None:
    """Save the result of `compile_ahead` to a file, as a pickle without the captured values."""
    compiled.save_compiled_function(path, external_data=captured)
