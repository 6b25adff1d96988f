"""Each private interface of torch that is used: a test fails by its name where a new torch has changed it."""

import ast
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import bnexp
from bnexp.runs.cache import VARIABLE
from bnexp.training import torch_internals
from bnexp.training.compiled import set_up_torch
from bnexp.training.compiler import has_compiler

PACKAGE = Path(bnexp.__file__).parent
needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler (g++ or clang++)")
ahead = pytest.mark.skipif(torch.__version__ < "2.15", reason="torch before 2.15 compiles nothing ahead of time")


def private_names(path: Path) -> Iterator[str]:
    """Torch's modules and attributes that begin with an underscore, as a file names them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        yield from (name for name in names if re.match(r"torch(\.\w+)*\._[a-z]", name))


def test_private_names_are_in_one_module() -> None:
    users = {path.name for path in PACKAGE.rglob("*.py") if list(private_names(path))}
    assert users == {"torch_internals.py"}


def test_pytree() -> None:
    tree = ({"a": torch.ones(2)}, torch.zeros(1))
    doubled = torch_internals.map_tensors(lambda x, y: x + y, tree, tree)
    assert doubled[0]["a"].tolist() == [2, 2]
    assert doubled[1].tolist() == [0]


def test_mark_static_address() -> None:
    tensor = torch.ones(2)
    torch_internals.keep_in_place([{"a": tensor}, None])
    assert tensor._dynamo_static_input_type is not None


@pytest.mark.parametrize(
    ("module", "definition"),
    [
        ("torch._inductor.codecache", "_HEADER_DIR ="),
        ("torch._inductor.codecache", "_HEADER_LOCK_DIR ="),
        ("torch._inductor.runtime.cache_dir_utils", "def default_cache_dir("),
        ("torch._inductor.utils", "def clear_caches("),
    ],
)
def test_names_that_are_replaced_or_called(module: str, definition: str) -> None:
    source = inspect.getsource(pytest.importorskip(module))
    assert re.search(f"^{re.escape(definition)}", source, re.MULTILINE), f"{module} has no {definition}"


@pytest.fixture
def settings(warm_scratch: Path) -> tuple[ModuleType, ModuleType]:
    """The compiler's settings, set up: torch refuses one that it doesn't know."""
    set_up_torch(torch.device("cpu"))
    return pytest.importorskip("torch._dynamo.config"), pytest.importorskip("torch._inductor.config")


def test_settings_of_the_compiler(settings: tuple[ModuleType, ModuleType]) -> None:
    dynamo, inductor = settings
    assert dynamo.recompile_limit == dynamo.accumulated_recompile_limit == 1024
    assert inductor.compile_threads == 1
    with pytest.raises(AttributeError):
        inductor.no_such_setting = True


def test_the_compilers_directory_is_another_for_a_while(
    settings: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir  # noqa: PLC0415 - torch's compiler

    before = os.environ[VARIABLE]
    with torch_internals.compiler_directory(str(tmp_path), VARIABLE):
        assert cache_dir() == str(tmp_path)
        assert not settings[1].cpp_cache_precompile_headers
    assert cache_dir() == os.environ[VARIABLE] == before


@needs_compiler
@ahead
def test_compiled_ahead_of_time_saved_and_loaded(settings: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    weight = torch.full((2,), 3.0)

    def scaled(x: Tensor) -> Tensor:
        return weight * x

    x = torch.tensor([1.0, 2.0])
    compiled = torch_internals.compile_ahead(torch.compile(scaled, fullgraph=True, dynamic=False), (x,))
    assert compiled(x).tolist() == [3, 6]
    torch_internals.save_compiled(compiled, tmp_path / "kept", {"weight": weight})
    loaded = torch_internals.load_compiled((tmp_path / "kept").read_bytes(), {"weight": 2 * weight})
    assert loaded(x).tolist() == [6, 12]
