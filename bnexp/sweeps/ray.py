"""The executor that trains stacks in tasks of Ray: on the cluster that RAY_ADDRESS names, else on this machine."""

import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bnexp.runs.config import ConfigError
from bnexp.runs.log import set_up_logging
from bnexp.runs.record import read_summary
from bnexp.runs.streams import protect_streams
from bnexp.sweeps.display import DONE
from bnexp.sweeps.executor import Ended, failures_of, last_line
from bnexp.sweeps.job import Failures, StackOfJobs
from bnexp.sweeps.stacks import SweepPlan, Task, threads_of
from bnexp.sweeps.train import train_stack
from bnexp.training.device import CORES, pick_device

POLL = 0.2  # seconds
TIMEOUT = 20.0  # seconds in which a cluster has to answer
CLOSING = 60.0  # seconds in which cancelled tasks close their runs
CARRIED = ("BNEXP_DATA", "PYTHONPATH")  # environment variables


def train_task(task: Task, directory: str, environment: dict[str, str]) -> Failures:
    """Train the stacks of a task one after the other, and return the failures of their runs: what a task of Ray calls.

    directory: the working directory. environment: variables to set.
    """
    os.environ.update(environment)
    os.chdir(directory)
    protect_streams()
    set_up_logging()
    failures: Failures = {}
    for stack in task:
        failures |= train_stack(stack)
    return failures


class RayExecutor:
    """An executor that trains each task in a process of Ray. Tasks are cancelled when this process ends, however."""

    def __init__(self, plan: SweepPlan) -> None:
        import ray  # noqa: PLC0415 - an extra

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self.ray: Any = ray
        self.plan = plan
        address = os.environ.get("RAY_ADDRESS")
        if address:
            check_address(address)
        local = {} if address else {"address": "local", "include_dashboard": False}
        self.ray.init(log_to_driver=False, logging_level="ERROR", **local)
        self.waiting: list[StackOfJobs] = []
        self.tasks: dict[Any, Task] = {}  # by Ray's reference to the result

    def start(self, stack: StackOfJobs) -> None:
        """Append a stack to those that are submitted at the next poll."""
        self.waiting.append(stack)

    def poll(self) -> list[Ended]:
        """Submit what waits, and return the stacks of the tasks that have ended; wait for POLL seconds at most."""
        for task in self.plan.tasks(self.waiting):
            self.tasks[self.submitted(task)] = task
        self.waiting.clear()
        done, _ = self.ray.wait(list(self.tasks), timeout=POLL)
        return [ended for reference in done for ended in self.close(reference)]

    def submitted(self, task: Task) -> Any:
        """Submit a task and return Ray's reference to its result."""
        cores = self.plan.config.cpus or max(threads_of(stack[0]) for stack in task)
        environment = {name: os.environ[name] for name in CARRIED if name in os.environ} | {CORES: str(cores)}
        gpus = self.plan.config.gpus or int(pick_device(task[0][0].config.device).type == "cuda")
        self.check_room(cores, float(gpus))
        resources = {"num_cpus": cores, "num_gpus": gpus, "max_retries": 0}
        return self.ray.remote(**resources)(train_task).remote(task, os.getcwd(), environment)

    def check_room(self, cores: int, gpus: float) -> None:
        """Raise ConfigError where no node has as many cores and GPUs: Ray would wait for one, silently."""
        rooms = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(room.get("CPU", 0) >= cores and room.get("GPU", 0) >= gpus for room in rooms):
            most = max((room.get("CPU", 0) for room in rooms), default=0)
            needed = f"{cores} cores and {gpus:.0f} GPUs"
            raise ConfigError(
                f"no node of Ray has {needed} for a run (the most cores are {most:.0f}): set executor.cpus"
            )

    def close(self, reference: Any) -> Iterable[Ended]:
        """Yield how the stacks of a task that has ended did; of a lost one, submit again what it had not begun."""
        task = self.tasks.pop(reference)
        try:
            failures: Failures = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            whole = [all(has_ended(job.directory) for job in stack) for stack in task]
            done = whole.index(False) if False in whole else len(task)
            yield from (Ended(stack, {}) for stack in task[:done])
            why = f"a task of Ray was lost ({type(error).__name__}: {last_line(str(error))[:200]})"
            yield from (Ended(stack, lost=why) for stack in task[done : done + 1])
            self.waiting += task[done + 1 :]
            return
        yield from (Ended(stack, failures_of(stack, failures)) for stack in task)

    def cancel(self) -> None:
        """Cancel all tasks, wait until they have closed their runs, for CLOSING seconds at most, and leave Ray."""
        for reference in self.tasks:
            self.ray.cancel(reference)
        if self.tasks:
            self.ray.wait(list(self.tasks), num_returns=len(self.tasks), timeout=CLOSING)
        self.tasks.clear()
        self.ray.shutdown()


def has_ended(directory: Path) -> bool:
    """Return whether the run in a directory has an outcome with which it is not trained again here."""
    summary = read_summary(directory)
    return summary is not None and summary["status"] in DONE


def check_address(address: str) -> None:
    """Raise ConfigError where nothing answers at HOST:PORT, since Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        try:
            socket.create_connection((host, int(port)), TIMEOUT).close()
        except OSError as error:
            raise ConfigError(f"RAY_ADDRESS={address} can't be reached: {error.strerror or error}") from error
