"""The loop: members in, metrics out."""

import signal
import threading
import time
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

import torch

from bnexp.archs.registry import make_model, notes
from bnexp.batches import Batches
from bnexp.checkpoint import save_checkpoint
from bnexp.config import ConfigError, RunConfig, require_choice
from bnexp.data import load_data
from bnexp.engine import Evaluation, Stack, has_compiler, pick_device, thread_count
from bnexp.init import INITS
from bnexp.logs import Recorder
from bnexp.optim import find_optimizer
from bnexp.runs import CHECKPOINT, Launch, config_digest, create_run, write_summary

TARGETS = (80, 90, 95, 97, 98)  # percent of validation accuracy whose first crossing is noted


class Display(Protocol):
    """What the loop tells whoever watches."""

    def prepare(self, steps: int, compiling: bool, compiler: bool) -> None: ...
    def progress(self, step: int, seconds: float) -> None: ...
    def evaluated(self, step: int, result: Evaluation) -> None: ...


class Interrupted(KeyboardInterrupt):
    """The user or the system asked to stop; the runs were closed."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a request that the loop heeds between steps; a second one ends at once."""

    signum: int | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self.previous = {s: signal.signal(s, self.note) for s in (signal.SIGINT, signal.SIGTERM)}
        else:
            self.previous = {}
        return self

    def note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self.restore()

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


class Stopwatch:
    """Seconds of training alone: stopped while the network is evaluated or compiled."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.total, self.since = device, 0.0, 0.0

    def start(self) -> None:
        self.since = self.now()

    def stop(self) -> None:
        self.total += self.now() - self.since

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass
class Member:
    """A run while it trains: its curve so far."""

    config: RunConfig
    launch: Launch
    recorder: Recorder
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    diverged_at: int | None = None

    def note(self, step: int, seconds: float, train_loss: float | None, result: Evaluation) -> None:
        if train_loss is not None:
            self.recorder.train_loss(step, train_loss)
        self.recorder.evaluation(step, "validation", result)
        last_step, last_seconds = (self.steps[-1], self.seconds[-1]) if self.steps else (0, 0.0)
        rate = (step - last_step) / (seconds - last_seconds) if step else 0.0
        self.recorder.speed(step, seconds, rate)
        self.steps.append(step)
        self.seconds.append(seconds)
        self.accuracy.append(result.accuracy)

    def summary(self, status: str, step: int, seconds: float, test: Evaluation | None) -> dict[str, Any]:
        best = max(range(len(self.accuracy)), key=self.accuracy.__getitem__, default=None)
        crossings = {target: self.first_above(target / 100) for target in TARGETS}
        return {
            "status": status,
            "steps": step,
            "seconds": seconds,
            "steps_per_second": step / seconds if seconds else None,
            "diverged_at": self.diverged_at,
            "validation": {
                "final": self.accuracy[-1] if self.accuracy else None,
                "best": self.accuracy[best] if best is not None else None,
                "best_step": self.steps[best] if best is not None else None,
            },
            "test": {"accuracy": test.accuracy, "loss": test.loss} if test else None,
            "steps_to": {str(t): self.steps[i] if i is not None else None for t, i in crossings.items()},
            "seconds_to": {str(t): self.seconds[i] if i is not None else None for t, i in crossings.items()},
        }

    def first_above(self, target: float) -> int | None:
        return next((i for i, accuracy in enumerate(self.accuracy) if accuracy >= target), None)


def check(config: RunConfig) -> None:
    """Everything that can be known before a run starts. Raises ConfigError; makes no file but a data set's."""
    require_choice("init", config.init.name, INITS)
    find_optimizer(config.optim)
    pick_device(config.device)
    data = load_data(config.dataset)
    make_model(config, data.shape, data.classes)
    if config.batch_size > len(data.train):
        raise ConfigError(
            f"batch_size={config.batch_size} is not allowed: at most the {len(data.train)} training images"
        )


def run_alone(config: RunConfig, launch: Launch, display: Display) -> dict[str, Any]:
    """Train one run into its directory and return its summary. Raises Interrupted after closing it."""
    device = pick_device(config.device)
    data = load_data(config.dataset)
    threads = thread_count(config, device)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # saturated sigmoids make denormals, which are slow
    model = make_model(config, data.shape, data.classes)
    stack = Stack([config], data, device)
    facts = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": threads,
        "compiled": stack.compiled,
        "dataset": {"sha256": data.checksum, "train": len(data.train), "shape": data.shape, "classes": data.classes},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "notes": notes(config),
    }
    create_run(launch, config, facts)
    with Recorder(launch.directory, stack.evaluator.columns()) as recorder:
        recorder.hyperparameters(config.as_dict())
        try:
            return train([Member(config, launch, recorder)], stack, display)[0]
        except Exception as error:
            write_summary(launch.directory, {"status": "failed", "error": f"{type(error).__name__}: {error}"})
            raise


def train(members: list[Member], stack: Stack, display: Display) -> list[dict[str, Any]]:
    """Train a stack to its end and close its runs' directories; their summaries."""
    config, data = stack.config, stack.data
    augment = config.dataset.augment != "none"
    seeds = [member.config.seed for member in members]
    batches = Batches(seeds, len(data.train), config.batch_size, augment, data.train.labels.device)
    watch = Stopwatch(data.train.labels.device)
    with StopRequest() as stop:
        display.prepare(config.steps, stack.compiled, has_compiler())
        stack.warm_up(batches.batch(0))
        watch.start()
        for step in range(config.steps + 1):
            if config.eval.due(step, config.steps):
                watch.stop()
                evaluate(members, stack, step, watch.total, display)
                watch.start()
                if step == config.steps or all(member.diverged_at for member in members):
                    break
            if stop.signum is not None:
                break
            stack.set_rates(step)
            stack.step(batches.batch(step))
            if step % 20 == 0:
                display.progress(step, watch.total)
        watch.stop()
        cut = stop.signum is not None and step < config.steps
        summaries = [close(member, stack, row, step, watch.total, cut) for row, member in enumerate(members)]
    if stop.signum is not None:
        raise Interrupted(stop.signum)
    return summaries


def evaluate(members: list[Member], stack: Stack, step: int, seconds: float, display: Display) -> None:
    """Note the validation accuracy and the training loss of every member that is still in the race."""
    for row, member in enumerate(members):
        if member.diverged_at is not None:
            continue
        updates = step - member.steps[-1] if member.steps else 0
        result = stack.evaluate(row, stack.data.validation)
        member.note(step, seconds, stack.take_loss(row, updates) if updates else None, result)
        member.diverged_at = stack.diverged_at(row)
        display.evaluated(step, result)


def close(member: Member, stack: Stack, row: int, step: int, seconds: float, cut: bool) -> dict[str, Any]:
    """Test accuracy, checkpoint and summary. What a diverged network answers is its result, so it is tested too."""
    status = "interrupted" if cut else "finished" if member.diverged_at is None else "diverged"
    test = None if cut else stack.evaluate(row, stack.data.test)
    if test:
        member.recorder.evaluation(step, "test", test)
    save_checkpoint(member.launch.directory / CHECKPOINT, stack.members[row], config_digest(member.config))
    summary = member.summary(status, step, seconds, test)
    write_summary(member.launch.directory, summary)
    return summary
