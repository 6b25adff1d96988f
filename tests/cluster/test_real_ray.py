"""executor=ray on a cluster of two nodes, which Ray's own utilities bring up on this machine: whatever happens to
tasks, nodes and drivers, every run ends in the bytes that it has without any of it.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import SWEEP, Start, files_of, local, pids_of, start, training, wait_for  # noqa: F401 - fixtures

pytestmark = pytest.mark.cluster

DATA = Path(__file__).parents[2] / "data"
RAY = ("executor=ray", "hydra.sweep.dir=s", "executor.runs_per_job=1")
LONG = (*SWEEP[:4], "steps=8000", *SWEEP[5:])  # Ray starts its tasks within a second
TASK = "^ray::train_task"


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    """The cluster; its second node comes for each test. The variable is how Ray can be told to stay on loopback."""
    utilities = pytest.importorskip("ray.cluster_utils")
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    cluster = utilities.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "node_ip_address": "127.0.0.1"}
    )
    yield cluster
    cluster.shutdown()
    del os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]


@pytest.fixture
def second_node(two_nodes: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("RAY_ADDRESS", two_nodes.address)
    node = two_nodes.add_node(num_cpus=1, node_ip_address="127.0.0.1")
    yield node
    if node in two_nodes.list_all_nodes():
        two_nodes.remove_node(node)


def test_on_this_machine_alone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    command = start(*SWEEP, *RAY[:2])
    assert command.end() == 0, command.text
    assert files_of("s") == local(start, *SWEEP)


def test_a_killed_worker(second_node: Any, start: Start) -> None:
    command = start(*LONG, *RAY)
    training(command)
    os.kill(pids_of(TASK)[0], signal.SIGKILL)
    assert command.end() == 0, command.text
    assert "a task of Ray was lost" in command.text
    assert files_of("s") == local(start, *LONG)


def test_a_removed_node(two_nodes: Any, second_node: Any, start: Start) -> None:
    command = start(*LONG, *RAY)
    training(command)
    wait_for(lambda: len(pids_of(TASK)) == 2, "a task on each node")
    two_nodes.remove_node(second_node, allow_graceful=False)
    assert command.end() == 0, command.text
    assert "a task of Ray was lost" in command.text
    assert files_of("s") == local(start, *LONG)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_driver_that_ends(second_node: Any, start: Start, number: signal.Signals) -> None:
    command = start(*LONG, *RAY)
    training(command)
    command.send(number)
    assert command.end() == (-9 if number == signal.SIGKILL else 128 + number)
    wait_for(lambda: not pids_of(TASK), "the end of its tasks")
    if number != signal.SIGKILL:
        assert "resume it by: bnexp resume s" in command.text
    assert start("resume", "s").end() == 0
    assert files_of("s") == local(start, *LONG)


def test_the_data_that_the_environment_names(second_node: Any, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative folder is that of the command. With a core each, the second run is trained on the second node."""
    if not (DATA / "MNIST").exists():
        pytest.skip("data/MNIST is absent")
    Path("somewhere").symlink_to(DATA)
    monkeypatch.setenv("BNEXP_DATA", "somewhere")
    words = ("train", "-m", "dataset=mnist", "seed=0,1", "steps=200", "compile=false", "device=cpu")
    command = start(*words, *RAY)
    assert command.end() == 0, command.text
    assert files_of("s") == local(start, *words)


def test_an_address_where_there_is_no_ray(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    command = start(*SWEEP, *RAY)
    assert command.end() == 2
    assert command.text.splitlines()[-1] == "bnexp: RAY_ADDRESS=127.0.0.1:9 can't be reached: Connection refused"
