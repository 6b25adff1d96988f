"""A member: a run while it trains. It is created or reopened in its directory, and has its metrics and summary."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bnexp.data.load import Data, load_data
from bnexp.models.registry import make_model, notes
from bnexp.runs import distributed
from bnexp.runs.config import ConfigError, RunConfig
from bnexp.runs.console import command, count
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
from bnexp.runs.plugins import plugins_of
from bnexp.runs.record import RunRecord, complete_run, fits, read_record
from bnexp.training.checkpoint import Saved, newest_checkpoint
from bnexp.training.device import pick_device, thread_count
from bnexp.training.evaluation import Evaluation, activation_columns
from bnexp.training.pretrained import describe_start, source_of
from bnexp.training.recorder import Recorder, damaged, rounded
from bnexp.training.state import start_member

TARGETS = (80, 90, 95, 97, 98)  # percent; the summary has the first step with at least this validation accuracy


@dataclass
class Member:
    """A run while it trains.

    launch: its directory and how it was launched. lock: of the directory. steps, seconds, accuracy: for each evaluation
    so far, updates, seconds of training and validation accuracy. diverged_at: number of the first update whose loss was
    not finite, or None. outcome: at the end, its summary or an error.
    """

    config: RunConfig
    launch: Launch
    lock: Lock
    recorder: Recorder
    start: Saved = field(default_factory=Saved)  # the state that it starts or is resumed from
    row: int = 0  # the member's number in its stack
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    diverged_at: int | None = None
    outcome: dict[str, Any] | Exception | None = None

    def log(self, step: int, seconds: float, train_loss: float | None, result: Evaluation) -> None:
        """Log an evaluation after `step` updates and `seconds` of training, and append it to the member's lists.

        train_loss: mean since the evaluation before, or None.
        """
        if train_loss is not None:
            self.recorder.train_loss(step, train_loss)
        self.recorder.evaluation(step, "validation", result)
        last_step, last_seconds = (self.steps[-1], self.seconds[-1]) if self.steps else (0, 0.0)
        rate = (step - last_step) / (seconds - last_seconds) if step else 0.0
        self.recorder.speed(step, seconds, rate)
        self.steps.append(step)
        self.seconds.append(seconds)
        self.accuracy.append(rounded(result.accuracy))  # the same value that a resumed run reads from metrics.csv

    def evaluated(self, step: int) -> bool:
        """Return whether the latest evaluation was after `step` updates."""
        return self.steps[-1:] == [step]

    def release(self) -> None:
        """Close the files of the run, and unlock its directory."""
        self.recorder.close()
        self.lock.release()

    def summary(self, status: str, step: int, seconds: float, tests: dict[str, Evaluation]) -> dict[str, Any]:
        """Return the content of summary.json. status: "finished", "diverged" or "interrupted". tests: by split."""
        best = max(self.accuracy, default=None)
        scores = {name: {"accuracy": result.accuracy, "loss": result.loss} for name, result in tests.items()}
        return {
            "status": status,
            "steps": step,
            "seconds": seconds,
            "steps_per_second": step / seconds if seconds else None,
            "diverged_at": self.diverged_at,
            "validation": {
                "final": self.accuracy[-1] if self.accuracy else None,
                "best": best,
                "best_step": self.steps[self.accuracy.index(best)] if best is not None else None,
            },
            "test": None,  # replaced if it is among the scores
            "steps_to": {str(target): self.first_above(target / 100, self.steps) for target in TARGETS},
            "seconds_to": {str(target): self.first_above(target / 100, self.seconds) for target in TARGETS},
        } | scores

    def first_above(self, target: float, values: Sequence[float]) -> float | None:
        """Return the value for the first evaluation with at least this validation accuracy, or None.

        values: one for each evaluation.
        """
        pairs = zip(self.accuracy, values, strict=True)
        return next((value for accuracy, value in pairs if accuracy >= target), None)


def summary_of_complete_run(config: RunConfig, directory: Path) -> dict[str, Any] | None:
    """Return the summary of a run if its directory has it complete, by the installed bnexp and torch, else None.

    Another process, or a worker that was lost since, may have finished it after it was planned.
    """
    run = complete_run(directory)
    return run.summary if run and run.digest == config_digest(config) and run.same_versions else None


def create_or_reopen_run(config: RunConfig, launch: Launch, stack_size: int) -> Member:
    """Create a run in its directory, or reopen an interrupted one there. If none can be resumed, the run starts anew,
    and its earlier files are removed (`clear_run`).

    stack_size: number of members in its stack. Raises ConfigError if the directory can't be locked, if another process
    uses it, and as `starting_point` does; OSError if a file can't be read or written.
    """
    data, lock = load_data(config.dataset), Lock(launch.directory)
    model = make_model(config, data.shape, data.classes)
    try:
        start = starting_point(config, launch.directory, data, launch.compilation.compiled)
        if start.tensors is None:
            clear_run(launch.directory)
            create_run(launch, config, run_facts(config, model, data, stack_size, launch.compilation))
        else:
            reopen_run(launch.directory, config, start.step)
        recorder = Recorder(launch.directory, activation_columns(model), last_row_step(start))
        recorder.hyperparameters(config.as_dict())
        return read_curve(Member(config, launch, lock, recorder, start))
    except BaseException:
        lock.release()
        raise


def last_row_step(start: Saved) -> int | None:
    """Return the step up to which a resumed run keeps the rows of its tables; None if it starts anew.

    It is the saved step, if that was evaluated before the state was saved: then the sums of losses are 0. Otherwise it
    is the step before: rows of the saved step, if there are any, will be written again.
    """
    return None if start.tensors is None else start.step - bool(start.tensors["record.losses"].any())


def starting_point(config: RunConfig, directory: Path, data: Data, compiled: bool) -> Saved:
    """Return the state that a run starts or is resumed from.

    Raises ConfigError if the directory contains another run, or this run with other facts (`check_facts`), and OSError
    if run.json or a checkpoint can't be read.
    """
    if not check_facts(config, directory, data, compiled):
        return Saved()
    shapes = {name: tensor.shape for name, tensor in start_member(config, data).flat().items()}
    return newest_checkpoint(directory, config, shapes)


def check_facts(
    config: RunConfig, directory: Path, data: Data, compiled: bool | None = None, elsewhere: bool = False
) -> bool:
    """Return whether the directory contains this run already; the versions of bnexp and torch are not compared.

    compiled: whether its step is to be compiled; None skips this fact. elsewhere: it trains on another machine, which
    compares device and threads when it trains. Raises ConfigError if the directory contains another run, or if its
    device, number of threads or processes, compilation or data has changed (the `reproducibility_facts`), or the
    checkpoint that it was started from (init_from). Raises OSError if run.json can't be read.
    """
    record = read_record(directory)
    if record is None:
        return False
    digests = {digest_of(record["config"]), *([record["config_sha256"]] if record.get("schema") == SCHEMA else [])}
    if digests != {config_digest(config)}:
        raise ConfigError(f"{directory} holds another run already: choose another directory")
    facts = reproducibility_facts(config, data, compiled)
    for name, fact in facts.items():
        if elsewhere and name in ("device", "threads"):
            continue
        now, then = (json.loads(json.dumps(value)) for value in (fact, record.get(name)))
        if name == "processes" and now != then:
            how = resume_command(directory, record["overrides"], then or 1)
            raise ConfigError(f"{directory} was made by {count(then, 'process')}, not {now}: resume it by {how}")
        if now != then:
            raise ConfigError(f"{directory} was made with {name} {then}: with {now} its curve would change")
    check_start(config, directory, record)
    return True


def resume_command(directory: Path, overrides: list[str], number: int) -> str:
    """Return the command that resumes a sweep, or a run of some number of processes on one machine.

    overrides: those of the run, for several processes.
    """
    if number == 1:
        return command("resume", directory)
    torchrun = ["torchrun", "--nproc-per-node", str(number), "-m", "bnexp", "train"]
    return shlex.join([*torchrun, *overrides, f"hydra.run.dir={directory}"])


def check_start(config: RunConfig, directory: Path, record: dict[str, Any], may_be_missing: bool = False) -> None:
    """Raise ConfigError if the checkpoint that the run was started from (init_from) has changed since or can't be read.

    record: the content of run.json. may_be_missing: accept that this checkpoint can't be read, for a run that is
    complete.
    """
    if not (config.init_from and fits(record.get("start"), {"sha256": str})):
        return
    try:
        digest = source_of(config).sha256
    except ConfigError:
        if may_be_missing:
            return
        raise
    if record["start"]["sha256"] != digest:
        raise ConfigError(f"{directory} was made from other weights: those of {config.init_from} have changed")


def reproducibility_facts(config: RunConfig, data: Data, compiled: bool | None) -> dict[str, Any]:
    """Return the facts in a run's record that its metrics depend on, besides its configuration and the versions of
    bnexp and torch.

    compiled: whether its step is compiled; None leaves this fact out.
    """
    device = pick_device(config.device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": distributed.processes(),
        "threads": thread_count(config, device),
        **({} if compiled is None else {"compiled": compiled}),
        "dataset": {"sha256": data.checksum, "train": len(data.train), "shape": data.shape, "classes": data.classes},
        **({"plugins": plugins} if (plugins := plugins_of(config)) else {}),
    }


def read_curve(member: Member) -> Member:
    """Fill in a resumed member's steps, accuracies and seconds from its tables, and return it.

    The seconds it resumes from are at least those in the tables. Raises OSError as `check_rows` does.
    """
    if member.start.step:
        curve = RunRecord(member.launch.directory, {}, {})
        member.steps = list(curve.validation)
        check_rows(member, list(curve.seconds))
        member.accuracy = [row["accuracy"] for row in curve.validation.values()]
        member.seconds = list(curve.seconds.values())
        known = max(member.start.seconds, *member.seconds, 0.0)  # the final checkpoint has no seconds
        member.start = replace(member.start, seconds=known)
    return member


def check_rows(member: Member, timed: list[int]) -> None:
    """Raise OSError unless, before the step from which the run is resumed, both tables have one row for each evaluation
    that was due, and no other.

    This detects a table that was replaced by an older copy. timed: the steps in timing.csv.
    """
    config, step = member.config, member.start.step
    due = [number for number in range(step) if config.eval.due(number, config.steps)]
    for name, steps in ((METRICS, member.steps), (TIMING, timed)):
        if [number for number in steps if number < step] != due:
            raise damaged(member.launch.directory / name)


def run_facts(
    config: RunConfig, model: nn.Module, data: Data, stack_size: int, compilation: Compilation
) -> dict[str, Any]:
    """Return what is added to a run's record when it is created: facts about machine, stack, network and data set."""
    return reproducibility_facts(config, data, compilation.compiled) | {
        "not_compiled_because": compilation.problem,
        "stack": stack_size,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "notes": notes(config),
        "start": describe_start(model, config) if config.init_from else None,
        "scaling": {"scale": data.scale.flatten().tolist(), "shift": data.shift.flatten().tolist()},
        **({"images": data.contents.record()} if data.contents else {}),
    }
