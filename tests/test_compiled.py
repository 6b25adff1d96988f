"""Compiled functions: kept on disk, taken from there, and compiled again where that fails."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bnexp import compiled
from bnexp.compiled import Compiled
from bnexp.engine import has_compiler

pytestmark = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler (g++ or clang++)")

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of ours alone: torch's own has what takes long, its headers compiled."""
    monkeypatch.setattr("torch._inductor.runtime.cache_dir_utils.cache_dir", lambda: str(tmp_path))
    return tmp_path / "bnexp"


def make(weight: float, key: str = "key") -> Compiled:
    """A function with a module in its closure, and one tensor that it changes in place."""
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.fill_(weight)

    @torch.no_grad()
    def step(state: Tensor, by: Tensor) -> Tensor:
        state.add_(model.weight @ by)
        return state * 2

    return Compiled(step, CPU, key, {"model": model})


def result(function: Compiled) -> tuple[list[float], list[float]]:
    state = torch.zeros(3)
    doubled = function(state, torch.ones(3))
    return state.tolist(), doubled.tolist()


@pytest.fixture
def no_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses:
        def aot_compile(self, example: Any) -> None:
            raise AssertionError("compiled again")

    monkeypatch.setattr(torch, "compile", lambda *words, **options: Refuses())


def test_kept_function_takes_the_closure_of_who_loads_it(cache: Path, request: pytest.FixtureRequest) -> None:
    assert result(make(1.0)) == ([3.0] * 3, [6.0] * 3)
    assert len(list(cache.iterdir())) == 1
    request.getfixturevalue("no_compiling")
    assert result(make(2.0)) == ([6.0] * 3, [12.0] * 3)
    with pytest.raises(AssertionError, match="compiled again"):
        result(make(1.0, "another key"))


@pytest.mark.parametrize("damage", ["half", "flipped"])
def test_damaged_file_is_compiled_again(cache: Path, damage: str) -> None:
    expected = result(make(1.0))
    [path] = cache.iterdir()
    whole = path.read_bytes()
    middle = len(whole) // 2
    changed = bytes([whole[middle] ^ 1])
    path.write_bytes(whole[:middle] if damage == "half" else whole[:middle] + changed + whole[middle + 1 :])
    assert compiled.load(path, {}) is None
    assert result(make(1.0)) == expected
    assert len(path.read_bytes()) > middle


def test_torch_that_cannot_compile_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older:
        def __init__(self, function: Callable[..., Any]) -> None:
            self.function = function

        def __call__(self, *arguments: Any) -> Any:
            return self.function(*arguments)

    monkeypatch.setattr(torch, "compile", lambda function, **options: Older(function))
    assert result(make(1.0)) == ([3.0] * 3, [6.0] * 3)


def test_nothing_is_kept_where_nothing_can_be_written(cache: Path) -> None:
    cache.write_text("in the way")
    assert result(make(1.0)) == ([3.0] * 3, [6.0] * 3)


def test_without_a_key_nothing_is_kept(cache: Path) -> None:
    assert result(make(1.0, "")) == ([3.0] * 3, [6.0] * 3)
    assert not cache.exists()


def test_other_code_is_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = compiled.place_of("key")
    assert compiled.place_of("key") == before != compiled.place_of("other")
    monkeypatch.setattr(compiled, "code_digest", lambda: "changed")
    assert compiled.place_of("key") != before
