"""The loop: members in, metrics out."""

import json
import multiprocessing
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import nn

from bnexp.data.batches import Batches
from bnexp.data.load import Data, load_data
from bnexp.models.init import INITS
from bnexp.models.norms import CONDITIONAL
from bnexp.models.registry import check_model, make_model, notes
from bnexp.runs import distributed
from bnexp.runs.config import ConfigError, RunConfig, require, require_choice
from bnexp.runs.directory import (
    CHECKPOINT,
    METRICS,
    SCHEMA,
    TIMING,
    Compilation,
    Launch,
    RunRecord,
    checkpoint_at,
    clear_progress,
    clear_run,
    complete_run,
    config_digest,
    create_run,
    digest_of,
    fits,
    read_record,
    reopen_run,
    write_failure,
    write_summary,
)
from bnexp.runs.lock import Lock
from bnexp.training.checkpoint import Saved, newest_checkpoint, save_checkpoint, save_progress
from bnexp.training.engine import (
    COMPILE_FROM,
    Asked,
    Evaluation,
    Stack,
    Stopped,
    activation_columns,
    never,
    pick_device,
    prepare_torch,
    start_member,
    thread_count,
    trained_names,
)
from bnexp.training.optim import find_optimizer
from bnexp.training.pretrained import describe_start, find_start, source_digest
from bnexp.training.recalibrate import recalibrated
from bnexp.training.recorder import Recorder, damaged
from bnexp.training.recorder import number as in_words

TARGETS = (80, 90, 95, 97, 98)  # percent of validation accuracy whose first crossing is noted


class Interrupted(KeyboardInterrupt):
    """The user or the system asked to stop; the runs were closed."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopRequest:
    """Turns the first SIGINT, SIGTERM or SIGHUP (a terminal that closes) into a request that the loop heeds between
    steps; a second one ends at once, but for a worker: its parent repeats what a whole group was told, and ends it
    where it takes too long. A signal that the process ignores stays ignored.
    """

    signum: int | None = None

    def __enter__(self) -> Self:
        heeded = [
            s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN
        ]
        main = threading.current_thread() is threading.main_thread()
        self.previous = {s: signal.signal(s, self.note) for s in heeded} if main else {}
        return self

    def note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self.restore()
        if multiprocessing.parent_process() is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def asked(self) -> bool:
        return self.signum is not None

    def restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


class Stopwatch:
    """Seconds of training alone: stopped while the networks are evaluated or compiled. Members share them equally."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.total, self.since = device, 0.0, 0.0

    def start(self) -> None:
        self.since = self.now()

    def stop(self, shared_by: int) -> None:
        self.total += (self.now() - self.since) / shared_by

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()


@dataclass
class Member:
    """A run while it trains: its curve so far, and in the end its summary or what made it fail."""

    config: RunConfig
    launch: Launch
    lock: Lock
    recorder: Recorder
    start: Saved = field(default_factory=Saved)  # what it goes on from
    row: int = 0  # of its stack
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    diverged_at: int | None = None
    outcome: dict[str, Any] | Exception | None = None

    def note(self, step: int, seconds: float, train_loss: float | None, result: Evaluation) -> None:
        if train_loss is not None:
            self.recorder.train_loss(step, train_loss)
        self.recorder.evaluation(step, "validation", result)
        last_step, last_seconds = (self.steps[-1], self.seconds[-1]) if self.steps else (0, 0.0)
        rate = (step - last_step) / (seconds - last_seconds) if step else 0.0
        self.recorder.speed(step, seconds, rate)
        self.steps.append(step)
        self.seconds.append(seconds)
        self.accuracy.append(float(in_words(result.accuracy)))  # as it is read back

    def evaluated(self, step: int) -> bool:
        """Whether its latest evaluation is that of this step."""
        return self.steps[-1:] == [step]

    def release(self) -> None:
        """Let go of its files and its directory."""
        self.recorder.close()
        self.lock.release()

    def summary(self, status: str, step: int, seconds: float, tests: dict[str, Evaluation]) -> dict[str, Any]:
        best = max(range(len(self.accuracy)), key=self.accuracy.__getitem__, default=None)
        crossings = {target: self.first_above(target / 100) for target in TARGETS}
        scores = {name: {"accuracy": result.accuracy, "loss": result.loss} for name, result in tests.items()}
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
            "test": None,  # unless it is among the scores
            "steps_to": {str(t): self.steps[i] if i is not None else None for t, i in crossings.items()},
            "seconds_to": {str(t): self.seconds[i] if i is not None else None for t, i in crossings.items()},
        } | scores

    def first_above(self, target: float) -> int | None:
        return next((i for i, accuracy in enumerate(self.accuracy) if accuracy >= target), None)


def check(config: RunConfig) -> list[str]:
    """Everything that can be known before a run starts; returns what is worth telling. Raises ConfigError; makes no
    file but a data set's.
    """
    require_choice("init", config.init.name, INITS)
    find_optimizer(config.optim)
    pick_device(config.device)
    data = load_data(config.dataset)
    if config.norm.name in CONDITIONAL and not config.dataset.conditions:
        raise ConfigError(f"norm={config.norm.name} needs dataset.conditions, as in [plain,inverted]")
    if config.batch_size > len(data.train):
        raise ConfigError(
            f"batch_size={config.batch_size} is not allowed: at most the {len(data.train)} training images"
        )
    if config.batch_size % distributed.processes():
        raise ConfigError(
            f"batch_size={config.batch_size} is not allowed: {distributed.processes()} processes share it equally"
        )
    together = distributed.processes() > 1
    model = check_model(config, data.shape, data.classes)
    trained_names(model, config)
    left = together and config.eval.recalibrate
    require(not left, "eval.recalibrate", "true", "one process, not torchrun: the others have left by then")
    compiled = together and config.compile is True
    require(not compiled, "compile", "true", "under torchrun gradients are averaged between the passes: auto or false")
    return [f"init_from={config.init_from}: {find_start(model, config)}"] if config.init_from else []


def outcome_of(config: RunConfig, directory: Path) -> dict[str, Any] | None:
    """Summary of the run, where the directory holds it complete: since it was planned, another process or a worker that
    was lost may have finished it.
    """
    run = complete_run(directory)
    return run.summary if run and run.digest == config_digest(config) and run.of_these_versions else None


def follow(config: RunConfig) -> None:
    """A process beside rank 0: its share of every batch, and nothing else. Where rank 0 stops, so does it."""
    device, data = pick_device(config.device), load_data(config.dataset)
    prepare_torch(config, device)
    stack = Stack([config], data, device, compiled=False)
    batches = Batches([config.seed], len(data.train), config.batch_size, config.dataset.augment != "none", device)
    with StopRequest() as stop:
        try:
            stack.warm_up(batches.batch(0))
            for step in range(config.steps):
                if config.eval.due(step, config.steps) and stack.diverged_at(0) is not None:
                    break
                stack.update(step, batches.batch(step))
        except RuntimeError:  # rank 0 has left
            if not stop.asked():
                raise


def open_member(config: RunConfig, launch: Launch, companions: int) -> Member:
    """Make a run's directory, or take up the run that was cut off there. `companions`: members of its stack, itself
    included. Raises ConfigError where another process has the directory, or it is another run's.
    """
    data, lock = load_data(config.dataset), Lock(launch.directory)
    model = make_model(config, data.shape, data.classes)
    try:
        start = where_cut_off(config, launch.directory, data, launch.compilation.compiled)
        if start.tensors is None:
            clear_run(launch.directory)
            create_run(launch, config, facts_of(config, model, data, companions, launch.compilation))
        else:
            reopen_run(launch.directory, config, start.step)
        recorder = Recorder(launch.directory, activation_columns(model), rows_until(start))
        recorder.hyperparameters(config.as_dict())
        return with_curve(Member(config, launch, lock, recorder, start))
    except BaseException:
        lock.release()
        raise


def rows_until(start: Saved) -> int | None:
    """Step of the last rows that what was saved knows of. An evaluation zeroes the sum of losses: where that isn't,
    one of the same step came after it, and is made again.
    """
    return None if start.tensors is None else start.step - bool(start.tensors["record.losses"].any())


def where_cut_off(config: RunConfig, directory: Path, data: Data, compiled: bool) -> Saved:
    """What a run goes on from. Raises ConfigError where it would go on otherwise than it began, or is another run."""
    if not check_facts(config, directory, data, compiled):
        return Saved()
    shapes = {name: tensor.shape for name, tensor in start_member(config, data).flat().items()}
    return newest_checkpoint(directory, config, shapes)


def check_facts(config: RunConfig, directory: Path, data: Data, compiled: bool | None = None) -> bool:
    """Whether the directory holds the run already. Raises ConfigError where that is another one, or was made with other
    facts. `compiled`: None, where that is still to be decided, by its record.
    """
    record = read_record(directory)
    if record is None:
        return False
    digests = {digest_of(record["config"]), *([record["config_sha256"]] if record.get("schema") == SCHEMA else [])}
    if digests != {config_digest(config)}:
        raise ConfigError(f"{directory} holds another run already: choose another directory")
    for name, fact in deciding_facts(config, data, compiled).items():
        now, then = (json.loads(json.dumps(found)) for found in (fact, record.get(name)))
        if now != then:
            raise ConfigError(f"{directory} was made with {name} {then}: with {now} it would go on to another curve")
    check_start(config, directory, record)
    return True


def check_start(config: RunConfig, directory: Path, record: dict[str, Any], gone_is_fine: bool = False) -> None:
    """A run starts from the run that its record tells, and an arm's runs from the same one. `gone_is_fine`: of a run
    that is over. Raises ConfigError.
    """
    if not (config.init_from and fits(record.get("start"), {"sha256": str})):
        return
    try:
        digest = source_digest(config)
    except ConfigError:
        if gone_is_fine:
            return
        raise
    if record["start"]["sha256"] != digest:
        raise ConfigError(f"{directory} was made from another run: the checkpoint of {config.init_from} has changed")


def deciding_facts(config: RunConfig, data: Data, compiled: bool | None) -> dict[str, Any]:
    """Of a run's record, those that its curve depends on beside its configuration."""
    device = pick_device(config.device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": thread_count(config, device),
        "processes": distributed.processes(),
        **({} if compiled is None else {"compiled": compiled}),
        "dataset": {"sha256": data.checksum, "train": len(data.train), "shape": data.shape, "classes": data.classes},
    }


def with_curve(member: Member) -> Member:
    """What its tables hold up to where it goes on. Raises OSError where rows are missing."""
    if member.start.step:
        curve = RunRecord(member.launch.directory, {}, {})
        member.steps = list(curve.validation)
        check_rows(member, list(curve.seconds))
        member.accuracy = [row["accuracy"] for row in curve.validation.values()]
        member.seconds = list(curve.seconds.values())
        known = max(member.start.seconds, *member.seconds, 0.0)  # the final checkpoint knows no clock
        member.start = replace(member.start, seconds=known)
    return member


def check_rows(member: Member, timed: list[int]) -> None:
    """Both tables have a row for each evaluation before the step that the run goes on from, which an older copy, put in
    their place, has not. `timed`: steps of timing.csv. Raises OSError.
    """
    config, step = member.config, member.start.step
    due = [number for number in range(step) if config.eval.due(number, config.steps)]
    for name, steps in ((METRICS, member.steps), (TIMING, timed)):
        if [number for number in steps if number < step] != due:
            raise damaged(member.launch.directory / name)


def facts_of(
    config: RunConfig, model: nn.Module, data: Data, companions: int, compilation: Compilation
) -> dict[str, Any]:
    """For the run's record."""
    facts = deciding_facts(config, data, compilation.compiled)
    dataset = facts.pop("dataset")
    return facts | {
        "not_compiled_because": compilation.problem,
        "stack": companions,
        "dataset": dataset,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "notes": notes(config),
        "start": describe_start(model, config) if config.init_from else None,
        **({"images": data.contents.record()} if data.contents else {}),
    }


def train_together(members: list[Member]) -> None:
    """Train runs of a stack and close their directories; `outcome` of each tells how it ended. Resumed runs train
    beside members of the same step. Raises Interrupted.
    """
    try:
        for step in sorted({member.start.step for member in members}):
            train_members([member for member in members if member.start.step == step])
    finally:
        for member in members:
            member.release()


def train_members(members: list[Member]) -> None:
    """Train members that start from the same step as one stack; whatever fails is the outcome of all of them."""
    config = members[0].config
    device, data = pick_device(config.device), load_data(config.dataset)
    prepare_torch(config, device)
    try:
        compiled = members[0].launch.compilation.compiled
        stack = Stack([member.config for member in members], data, device, compiled)
        take_places(members, stack)
        train(members, stack)
    except Exception as error:
        for member in members:
            if member.outcome is None:
                fail(member, error)


def train(members: list[Member], stack: Stack) -> None:
    """The loop. A member that diverges or fails is deactivated at the evaluation that finds out. All members start from
    the same step.
    """
    config, data, active = stack.config, stack.data, members
    augment = config.dataset.augment != "none"
    seeds = [member.config.seed for member in members]
    batches = Batches(seeds, len(data.train), config.batch_size, augment, data.train.labels.device)
    watch = Stopwatch(data.train.labels.device)
    saving = Timer(config.checkpoint.every_seconds)
    start = members[0].start.step
    stack.warm_up(batches.batch(start))  # compiling takes seconds to minutes, in which there is nothing to save
    with StopRequest() as stop:
        asked = stop.asked if distributed.processes() == 1 else never  # torchrun's cannot be resumed: better a late end
        watch.start()
        for step in range(start, config.steps + 1):
            if config.eval.due(step, config.steps):
                watch.stop(len(active))
                active = [member for member in active if stays_active(member, stack, step, watch.total, asked)]
                if step == config.steps or not active or asked():
                    break
                repack(active, stack, batches, step)
                watch.start()
            if stop.asked():
                watch.stop(len(active))
                break
            if saving.due():
                watch.stop(len(active))
                active = [member for member in active if saved(member, stack, watch.total)]
                if not active:
                    break
                watch.start()
            stack.update(step, batches.batch(step))
        for member in active:
            status = "finished" if member.evaluated(config.steps) else "interrupted"
            close(member, stack, step, watch.total, status, asked)
    if stop.signum is not None:
        raise Interrupted(stop.signum)


class Timer:
    """Whether so many seconds have passed since the last time."""

    def __init__(self, every: float) -> None:
        self.every, self.last = every, time.monotonic()

    def due(self) -> bool:
        now = time.monotonic()
        if now - self.last < self.every:
            return False
        self.last = now
        return True


def saved(member: Member, stack: Stack, seconds: float) -> bool:
    """Keep a checkpoint that a killed run is resumed from; whether that went well."""
    try:
        member.recorder.sync()
        state = stack.members[member.row]
        save_progress(member.launch.directory, state, member.config, member.start.seconds + seconds)
    except OSError as error:
        fail(member, error)
        return False
    return True


def take_places(members: list[Member], stack: Stack) -> None:
    """Each in its row, with what it goes on from."""
    number_rows(members)
    for member in members:
        if member.start.tensors is not None:
            stack.restore(member.row, member.start.tensors)


def number_rows(members: list[Member]) -> None:
    for row, member in enumerate(members):
        member.row = row


def repack(active: list[Member], stack: Stack, batches: Batches, step: int) -> None:
    """Leave the deactivated members out: at once where that is free; where it means to compile a smaller stack, when
    half are gone and the remaining steps pay for it.
    """
    size = len(stack.members)
    pays = len(active) <= size / 2 and stack.config.steps - step >= COMPILE_FROM if stack.mapped else len(active) < size
    if pays:
        rows = [member.row for member in active]
        stack.keep(rows)
        batches.keep(rows)
        number_rows(active)
        stack.warm_up(batches.batch(step))


def stays_active(member: Member, stack: Stack, step: int, seconds: float, asked: Asked) -> bool:
    """Evaluate a member, unless it was before it was interrupted; whether it trains on."""
    try:
        if not member.evaluated(step):
            evaluate(member, stack, step, seconds, asked)
    except Stopped:
        return True
    except OSError as error:
        fail(member, error)
        return False
    member.diverged_at = stack.diverged_at(member.row)
    if member.diverged_at is not None:
        close(member, stack, step, seconds, "diverged", asked)
    return member.diverged_at is None


def evaluate(member: Member, stack: Stack, step: int, seconds: float, asked: Asked) -> None:
    """Note its validation accuracy and training loss. Raises Stopped."""
    updates = step - member.steps[-1] if member.steps else 0
    result = stack.evaluate(member.row, stack.data.validation, asked)
    loss = stack.take_loss(member.row, updates) if updates else None
    member.note(step, member.start.seconds + seconds, loss, result)
    if member.config.eval.keep:
        save_checkpoint(checkpoint_at(member.launch.directory, step), stack.members[member.row], member.config)


def close(member: Member, stack: Stack, step: int, seconds: float, status: str, asked: Asked) -> None:
    """Test accuracy, checkpoint and summary."""
    directory, state = member.launch.directory, stack.members[member.row]
    try:
        status, tests = tested(member, stack, status, asked)
        for split, result in tests.items():
            member.recorder.evaluation(step, split, result)
        seconds += member.start.seconds
        found = member.summary(status, step, seconds, tests)
        member.recorder.sync()
        check_kept(member)
        if status == "interrupted":
            save_progress(directory, state, member.config, seconds)
        save_checkpoint(directory / CHECKPOINT, state, member.config)
        write_summary(directory, found)
        member.outcome = found
        if status != "interrupted":
            clear_progress(directory)
    except OSError as error:
        fail(member, error)


def check_kept(member: Member) -> None:
    """Raises OSError where a checkpoint that an evaluation kept is gone."""
    for step in member.steps if member.config.eval.keep else []:
        checkpoint_at(member.launch.directory, step).stat()


def tested(member: Member, stack: Stack, status: str, asked: Asked) -> tuple[str, dict[str, Evaluation]]:
    """Its tests, and its status: interrupted, where it was asked to stop meanwhile; then it is tested when it goes on.
    What a diverged network answers is its result, so it is tested too.
    """
    if status == "interrupted":
        return status, {}
    try:
        tests = {"test": stack.evaluate(member.row, stack.data.test, asked)}
        if member.config.eval.recalibrate and status == "finished":
            tests |= test_recalibrated(member, stack, asked)
    except Stopped:
        return "interrupted", {}
    return status, tests


def test_recalibrated(member: Member, stack: Stack, asked: Asked) -> dict[str, Evaluation]:
    """The test once more, with population statistics in the place of running averages, where there are some."""
    parameters, buffers = stack.members[member.row].parameters, recalibrated(stack, member.row, asked)
    if buffers is None:
        return {}
    found = stack.evaluator.evaluate(parameters, buffers, stack.data.test, asked)
    return {"test_recalibrated": found}


def fail(member: Member, error: Exception) -> None:
    member.outcome = error
    with suppress(OSError):  # what failed may be the directory itself
        write_failure(member.launch.directory, f"{type(error).__name__}: {error}")
