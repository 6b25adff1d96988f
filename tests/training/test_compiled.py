"""Compiled functions: kept on disk, taken from there, and compiled again where that fails."""

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from children import end_of, start
from torch import Tensor, nn

from bnexp.runs.cache import DIGEST, VARIABLE, open_cache
from bnexp.training import compiled
from bnexp.training.compiled import Compiled, CompileError, path_of
from bnexp.training.compiler import has_compiler

pytestmark = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler (g++ or clang++)")

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, warm_scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where steps are kept, of ours alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bnexp" / "steps"


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
    def refuse(function: Any, **options: Any) -> Any:
        raise AssertionError("compiled again")

    monkeypatch.setattr(torch, "compile", refuse)


def test_kept_function_takes_the_closure_of_who_loads_it(kept: Path, request: pytest.FixtureRequest) -> None:
    assert result(make(1.0)) == ([3.0] * 3, [6.0] * 3)
    assert len(list(kept.iterdir())) == 1
    request.getfixturevalue("no_compiling")
    assert result(make(2.0)) == ([6.0] * 3, [12.0] * 3)
    with pytest.raises(CompileError, match="compiled again"):
        result(make(1.0, "another key"))


class Other:
    """Not what a kept step is."""


def damaged(whole: bytes, how: str, name: str) -> bytes:
    """What is kept, damaged; but for the first three behind the right digest."""
    content = whole[DIGEST:]
    middle = len(content) // 2
    bytes_there = {
        "half": whole[: len(whole) // 2],
        "flipped": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        "empty": b"",
    }
    contents = {
        "no pickle": b"text",
        "nothing": b"",
        "half a pickle": content[:middle],
        "another class": pickle.dumps(Other()),
        "an attribute less": pickle.dumps({}),
        "an import that is gone": b"cbnexp.gone\nThing\n.",
        "a number": pickle.dumps(1.0),
    }
    if how in bytes_there:
        return bytes_there[how]
    return hashlib.sha256(name.encode() + contents[how]).digest() + contents[how]


DAMAGES = ("half", "flipped", "empty", "no pickle", "nothing", "half a pickle", "another class", "an attribute less")
DAMAGES += ("an import that is gone", "a number")


def test_damaged_file_is_compiled_again_and_replaced(
    kept: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make(1.0)
    expected = result(first)
    [path] = kept.iterdir()
    whole = path.read_bytes()
    with monkeypatch.context() as patch:  # compiling it takes a second each time
        calls: list[Compiled] = []
        patch.setattr(Compiled, "compile", lambda step, arguments: calls.append(step) or first.ready)
        for how in DAMAGES:
            path.write_bytes(damaged(whole, how, path.name))
            assert compiled.load(path, {}) is None, how
            again = make(1.0)
            again.captured = first.captured
            assert result(again) == expected, how
            assert len(path.read_bytes()) > len(whole) // 2, how
        assert len(calls) == len(DAMAGES)
    request.getfixturevalue("no_compiling")
    assert result(make(1.0)) == expected


def test_what_fits_another_function_is_compiled_again_and_replaced(kept: Path) -> None:
    """The digest is right, it loads, and fails when it is called; or it is what was kept under another name."""
    wide = Compiled(lambda x: x.sum(0) * 2, CPU, "wide")
    assert wide(torch.ones(7, 2)).tolist() == [14.0, 14.0]
    [other] = kept.iterdir()
    expected = result(make(1.0))
    [path] = set(kept.iterdir()) - {other}
    content = other.read_bytes()[DIGEST:]
    for planted in (hashlib.sha256(path.name.encode() + content).digest() + content, other.read_bytes()):
        path.write_bytes(planted)
        assert result(make(1.0)) == expected
        assert path.read_bytes() != planted


@pytest.mark.parametrize("kind", ["pipe", "directory", "link"])
def test_what_is_no_file_is_not_read(kept: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiled, "compile", lambda step, arguments: step.function)
    assert result(make(1.0)) == ([3.0] * 3, [6.0] * 3)
    path = path_of("key", open_cache())
    assert path is not None
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    assert result(make(1.0)) == ([3.0] * 3, [6.0] * 3)


def test_torch_that_cannot_compile_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    class Older:
        def __init__(self, function: Callable[..., Any]) -> None:
            self.function = function

        def __call__(self, *arguments: Any) -> Any:
            return self.function(*arguments)

    monkeypatch.setattr(torch, "compile", lambda function, **options: Older(function))
    assert result(make(1.0)) == ([3.0] * 3, [6.0] * 3)


def test_nothing_is_kept_where_nothing_can_be_written(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Compiled, "compile", lambda step, arguments: step.function)
    (tmp_path / "cache").write_text("in the way")
    assert result(make(1.0)) == ([3.0] * 3, [6.0] * 3)
    assert (tmp_path / "cache").read_text() == "in the way"


def test_without_a_key_nothing_is_kept(kept: Path) -> None:
    assert result(make(1.0, "")) == ([3.0] * 3, [6.0] * 3)
    assert not list(kept.iterdir())


def test_other_code_is_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    found = open_cache()
    before = compiled.path_of("key", found)
    assert compiled.path_of("key", found) == before != compiled.path_of("other", found)
    monkeypatch.setattr(compiled, "code_digest", lambda: "changed")
    assert compiled.path_of("key", found) != before


@pytest.mark.extra
def test_damaged_files_of_torch_are_made_anew(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that was cut off as it was written would be taken again and again."""
    monkeypatch.setattr("torch._inductor.config.cpp_cache_precompile_headers", False)
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.chdir(tmp_path)  # what the other process says goes to a file
    expected = ([3.0] * 3, [6.0] * 3)
    assert end_of(start(lambda: int(result(make(1.0)) != expected))) == 0  # what this process had loaded would stay
    scratch = kept.with_name("torch")
    libraries = list(scratch.rglob("*.so"))
    assert libraries
    for library in libraries:
        library.write_bytes(b"no library")
    [path] = kept.iterdir()
    assert result(make(1.0)) == expected
    assert not any(library.read_bytes() == b"no library" for library in scratch.rglob("*.so"))
    assert path.exists()
