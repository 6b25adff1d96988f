"""A run while it trains: how it is created or reopened in its directory, its curve, its summary."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnexp.data.load import Data, load_data
from bnexp.models.registry import make_model, notes
from bnexp.runs import distributed
from bnexp.runs.config import ConfigError, RunConfig
from bnexp.runs.directory import (
    METRICS,
    SCHEMA,
    TIMING,
    Compilation,
    Launch,
    clear_run,
    config_digest,
    create_run,
    digest_of,
    reopen_run,
)
from bnexp.runs.lock import Lock
from bnexp.runs.record import RunRecord, complete_run, fits, read_record
from bnexp.training.checkpoint import Saved, newest_checkpoint
from bnexp.training.device import pick_device, thread_count
from bnexp.training.engine import start_member
from bnexp.training.evaluation import Evaluation, activation_columns
from bnexp.training.pretrained import describe_start, source_digest
from bnexp.training.recorder import Recorder, damaged
from bnexp.training.recorder import number as in_words

TARGETS = (80, 90, 95, 97, 98)  # percent of validation accuracy whose first crossing is noted


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


def outcome_of(config: RunConfig, directory: Path) -> dict[str, Any] | None:
    """Summary of the run, where the directory holds it complete: since it was planned, another process or a worker that
    was lost may have finished it.
    """
    run = complete_run(directory)
    return run.summary if run and run.digest == config_digest(config) and run.of_these_versions else None


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
