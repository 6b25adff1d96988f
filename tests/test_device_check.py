"""scripts/device_check.py on the CPU: the same code, with digits and few steps."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import device_check  # noqa: PLC0415

    return device_check


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.syspath_prepend(str(SCRIPTS / "peers"))
    import device_parts  # noqa: PLC0415

    yield device_parts
    torch.backends.cudnn.allow_tf32 = True


def printed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_run_agrees_with_itself(parts: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    parts.agreement(parts.Setup("cpu", "data", small=True), "batch")
    rows = printed(capsys)
    assert [row["other"] for row in rows][:2] == ["the same run once more", "in a stack of 2"]
    assert all(row["difference"] == 0 < row["largest_parameter"] for row in rows)


def test_the_table_has_a_row_a_cell(parts: ModuleType, check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    parts.table(parts.Setup("cpu", "data", small=True), "batch", "relu")
    cells = check.table_cells(printed(capsys))
    assert [(cell["std"], cell["lr"]) for cell in cells] == [(std, lr) for std in (0.05, 5) for lr in (0.01, 1, 2)]
    assert cells[0]["published_test"] == [0.9803]
    assert cells[1]["published_test"] == [0.9834, 0.9822]
    assert all(cell["runs"] == 1 and 0 <= cell["test"][0] <= 1 for cell in cells)


@pytest.mark.parametrize(
    ("part", "words", "count"), [("mlp", ["batch", "1", "2"], 4), ("images", ["fp32"], 2), ("limits", [], 3)]
)
def test_rates_are_taken(
    parts: ModuleType, capsys: pytest.CaptureFixture[str], part: str, words: list[str], count: int
) -> None:
    tasks = parts.make_tasks(parts.Setup("cpu", "data", small=True), part, words)
    assert [(row["task"], row["problem"]) for row in printed(capsys)] == [(name, None) for name in tasks]
    assert len(tasks) == count
    assert all(task.rate(0.001) > 0 for task in tasks.values())


def test_a_contender_that_cannot_be_prepared_is_left_out(
    parts: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> object:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(parts.SERVED, "limits", lambda setup: iter([("nothing", fail)]))
    assert parts.make_tasks(parts.Setup("cpu", "data", small=True), "limits", []) == {}
    assert parts.make_tasks(parts.Setup("cpu", "data", True, seconds=0), "mlp", ["none"]) == {}
    assert [row["problem"] for row in printed(capsys)] == ["RuntimeError: no such kernel"]


def test_a_part_that_hangs_keeps_its_lines(check: ModuleType, tmp_path: Path) -> None:
    script = "import time; print('{\"found\": 1}', flush=True); time.sleep(60)"
    child = check.Child("agreement, none", [sys.executable, "-c", script], tmp_path / "log").start()
    while child.lines.empty():
        time.sleep(0.01)
    assert child.stop(time.monotonic()).startswith("unfinished")
    record: dict[str, Any] = {"agreement": []}
    check.keep(record, child)
    assert record["agreement"] == [{"found": 1}]


def test_a_contender_that_gives_no_answer_is_asked_no_more(check: ModuleType, tmp_path: Path) -> None:
    script = """
import json, sys, time
for task in ("one", "two", "three"):
    print(json.dumps({"task": task, "problem": "why" if task == "three" else None, "seconds": 1.5}))
print("ready", flush=True)
for line in sys.stdin:
    print(2.5, flush=True) if json.loads(line)["task"] == "one" else time.sleep(60)
"""
    server = check.Server("none", [sys.executable, "-c", script], tmp_path / "log", section="mlp").start()
    record: dict[str, Any] = {"problems": {}, "prepared": {}}
    server.await_ready(time.monotonic() + 10, record)
    assert (server.ready, record["problems"]) == (True, {"none: three": "why"})
    assert set(server.tasks) == {"none: one", "none: two"}
    assert server.ask(time.monotonic() + 10, task="one", seconds=1) == 2.5
    assert server.ask(time.monotonic(), task="two", seconds=1) is None
    assert server.ask(time.monotonic() + 10, task="one", seconds=1) is None
    server.stop(0)


def test_outcomes_are_read_from_pytest(check: ModuleType) -> None:
    lines = [
        "tests/test_cuda.py::test_a[1] ",
        "tests/test_cuda.py::test_a[2] ",
        "tests/test_cuda.py::test_b ",
        "[gw0] [ 33%] PASSED tests/test_cuda.py::test_a[1] ",
        "[gw1] [ 66%] FAILED tests/test_cuda.py::test_b ",
    ]
    found = check.test_results([(float(second), line) for second, line in enumerate(lines)])
    assert (found["passed"], found["failed"]) == (1, ["tests/test_cuda.py::test_b"])
    assert found["unfinished"] == ["tests/test_cuda.py::test_a[2]"]


def test_shares_of_the_device(check: ModuleType) -> None:
    rates = {"limits": {"limits: copy, GB/s": [4000], "limits: sgemm, TFLOP/s": [50]}, "mlp": {"none: x": [1e6]}}
    assert check.shares_of_limits(rates) == {"none: x": {"of_sgemm": 0.5285, "of_memory": 0.2125}}
    assert check.shares_of_limits({}) == {}


def test_data_sets_travel_as_one_file(check: ModuleType, tmp_path: Path) -> None:
    for name in ("MNIST/raw/images", "cifar10-jpeg/train/cat/1.jpg"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True)
        path.write_text(name)
    check.pack(tmp_path / "data", tmp_path / "data.tar.gz")
    check.unpack(tmp_path / "data.tar.gz", tmp_path / "there", check.PACKED[0])
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["MNIST"]
    assert (tmp_path / "there" / "MNIST" / "raw" / "images").read_text() == "MNIST/raw/images"
