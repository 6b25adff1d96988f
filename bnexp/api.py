"""bnexp in Python: read runs, compare them, load their networks, train.

    from bnexp.api import compare_runs, load_model, load_runs, train

What is documented here stays as it is. All other modules may change.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bnexp.cli.arguments import parse_arguments
from bnexp.cli.plan import plan, start
from bnexp.compare.arms import ArmResult, arrange, compare_panels, only, pick_by, settings_of, swept_keys
from bnexp.compare.export import curves_table
from bnexp.data.load import load_data
from bnexp.models.registry import make_model
from bnexp.runs.config import ConfigError, require_choice
from bnexp.runs.directory import CHECKPOINT, checkpoint_path, flatten
from bnexp.runs.record import RunRecord, find_runs, read_run
from bnexp.runs.tensors import DamagedFileError, load_tensors
from bnexp.training.evaluation import conditional_norms

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["ArmResult", "ConfigError", "Evaluation", "Run", "Runs", "compare_runs", "load_model", "load_runs", "train"]


@dataclass(frozen=True)
class Evaluation:
    """The result on the validation images after `step` updates, which took `seconds`. accuracy: a fraction."""

    step: int
    seconds: float
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Run:
    """A run, as its directory has it."""

    record: RunRecord

    @property
    def directory(self) -> Path:
        """The directory of the run."""
        return self.record.directory

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration by the keys that one types: {"norm": "batch", "norm.eps": 1e-05, …}."""
        return flatten(self.record.config)

    @property
    def seed(self) -> int:
        """The seed."""
        return self.record.seed

    @property
    def status(self) -> str:
        """finished, diverged, failed, interrupted, or unfinished for a run that has not ended."""
        return str(self.summary["status"])

    @property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json, as `summary["test"]["accuracy"]`; of a run that has not ended, only a status."""
        return self.record.summary

    @cached_property
    def curve(self) -> list[Evaluation]:
        """All evaluations. Raises OSError or ValueError where metrics.csv or timing.csv can't be read."""
        rows, seconds = self.record.validation, self.record.seconds
        return [Evaluation(step, seconds[step], row["loss"], row["accuracy"]) for step, row in rows.items()]

    def preprocess(self, images: Tensor) -> Tensor:
        """Return images as the input of the run's network, float32 (N, C, H, W): scale · pixels + shift.

        images: uint8 (N, C, H, W) or (C, H, W), as the data set has them. Raises ConfigError for images of another
        shape, and, of runs whose record lacks the scale, where the data set can't be loaded.
        """
        batch = images if images.dim() == 4 else images[None]
        shape = tuple(self.record.record["dataset"]["shape"])
        if tuple(batch.shape[1:]) != shape or batch.dtype != torch.uint8:
            raise ConfigError(f"images of {tuple(images.shape)}, {images.dtype} are not allowed: uint8 (N, {shape})")
        scale, shift = self.scaling
        return batch * scale + shift

    @cached_property
    def scaling(self) -> tuple[Tensor, Tensor]:
        """The scale and the shift of the pixels, each (C, 1, 1)."""
        recorded = self.record.record.get("scaling")
        if recorded:
            scale, shift = (torch.tensor(values).view(-1, 1, 1) for values in (recorded["scale"], recorded["shift"]))
            return scale, shift
        data = load_data(self.record.located().dataset, self.directory)
        return data.scale, data.shift


class Runs(list[Run]):
    """A list of runs."""

    def to_frame(self) -> "pd.DataFrame":
        """Return a table with a row for each evaluation of each run (needs pandas: pip install 'bnexp[pandas]').

        Its columns are the run's directory, seed, each key whose values differ between the runs, step, seconds, loss
        and accuracy. Raises ConfigError without pandas.
        """
        try:
            import pandas as pd  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise ConfigError("to_frame needs pandas: pip install 'bnexp[pandas]'") from error
        columns, rows = curves_table([run.record for run in self])
        return pd.DataFrame(rows, columns=columns)


def load_runs(*directories: str | Path) -> Runs:
    """Return all runs in and below some directories, as `bnexp report` reads them.

    A run whose record is damaged is left out, with a printed error. Raises ConfigError where there is no run.
    """
    runs = find_runs([Path(directory) for directory in directories])
    if not runs:
        raise ConfigError(f"{', '.join(map(str, directories)) or 'no directory'} holds no run")
    return Runs(map(Run, runs))


def compare_runs(runs: Iterable[Run], by: str | None = None) -> list[ArmResult]:
    """Return the comparison that `bnexp report` shows: the result of each arm, the control first.

    by: the key whose values make the arms, by default norm, or the first that differs. Runs that have not ended don't
    count. Raises ConfigError where none has, or `by` is not a key that differs.
    """
    records = [run.record for run in runs]
    comparable = [record for record in records if record.flaw() is None]
    if not comparable:
        raise ConfigError("no run can be compared: none is finished")
    key = pick_by(by, swept_keys(settings_of([record.config for record in records])))
    panels = arrange(records, key)
    return compare_panels(panels, only(panels, comparable))


def load_model(directory: str | Path, step: int | None = None, condition: str | None = None) -> nn.Module:
    """Return the trained network of a run on the CPU, in evaluation mode; `Run.preprocess` makes its input.

    step: load the network as it was after so many updates, which a run with eval.keep=true has kept; by default at the
    end. condition: of a conditional norm, the one of `dataset.conditions` whose γ and β are applied; by default the
    first. Raises ConfigError where the run or its weights are missing or damaged, and for an unknown condition.
    """
    path = Path(directory) / CHECKPOINT if step is None else checkpoint_path(Path(directory), step)
    try:
        run, tensors = read_run(Path(directory)), load_tensors(path)
    except (OSError, ValueError, DamagedFileError) as error:
        raise ConfigError(f"{path} is missing or damaged, or is not a run's") from error
    config, dataset = run.located(), run.record["dataset"]
    model = make_model(config, tuple(dataset["shape"]), dataset["classes"], device="cpu")
    parts = [name.partition(".") for name in tensors if name.startswith(("parameters.", "buffers."))]
    model.load_state_dict({name: tensors[f"{kind}.{name}"] for kind, _, name in parts})
    if condition is not None:
        require_choice("condition", condition, config.dataset.conditions)
        for norm in conditional_norms(model).values():
            norm.condition.fill_(config.dataset.conditions.index(condition))
    return model.eval()


def train(overrides: list[str]) -> Run:
    """Train a run as `bnexp train` does, with its output, and return it: `train(["norm=batch", "dataset=digits"])`.

    Raises ConfigError for invalid overrides, `SweepError` if the run failed, and KeyboardInterrupt after Ctrl-C, which
    leaves it resumable.
    """
    arguments = parse_arguments(overrides)
    if arguments.multirun:
        raise ConfigError("a sweep is not a run: bnexp train -m, then load_runs")
    checked = plan(arguments, timed=False)
    start(checked)
    return Run(read_run(checked.directory))
