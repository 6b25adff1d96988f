"""What a run leaves while it trains: metrics.csv, timing.csv and TensorBoard's event file."""

import csv
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from bnexp.engine import Evaluation
from bnexp.runs import METRICS, TIMING


class Recorder:
    """Appends a row at each evaluation; metrics.csv holds no clock, so equal runs have equal bytes."""

    def __init__(self, directory: Path, layers: list[str]) -> None:
        self.layers = layers
        self.metrics_file = (directory / METRICS).open("w", newline="")
        self.timing_file = (directory / TIMING).open("w", newline="")
        self.metrics, self.timing = (csv.writer(f, lineterminator="\n") for f in (self.metrics_file, self.timing_file))
        self.metrics.writerow(["step", "split", "loss", "accuracy", *layers])
        self.timing.writerow(["step", "seconds", "steps_per_second"])
        self.board = SummaryWriter(str(directory))

    def train_loss(self, step: int, loss: float) -> None:
        self.metrics.writerow([step, "train", number(loss), "", *("" for _ in self.layers)])
        self.board.add_scalar("loss/train", loss, step)

    def evaluation(self, step: int, split: str, result: Evaluation) -> None:
        values = [result.activations[layer] for layer in self.layers] if split == "validation" else None
        cells = [number(value) for value in values] if values else ["" for _ in self.layers]
        self.metrics.writerow([step, split, number(result.loss), number(result.accuracy), *cells])
        self.metrics_file.flush()
        self.board.add_scalar(f"accuracy/{split}", result.accuracy, step)
        self.board.add_scalar(f"loss/{split}", result.loss, step)
        for layer, value in zip(self.layers, values or [], strict=False):
            self.board.add_scalar(f"activations/{layer}", value, step)

    def speed(self, step: int, seconds: float, steps_per_second: float) -> None:
        self.timing.writerow([step, f"{seconds:.6f}", f"{steps_per_second:.1f}"])
        self.timing_file.flush()
        if step:
            self.board.add_scalar("speed/steps_per_second", steps_per_second, step)

    def hyperparameters(self, config: dict[str, Any]) -> None:
        write_hyperparameters(self.board, config)

    def close(self) -> None:
        for file in (self.metrics_file, self.timing_file, self.board):
            file.close()


def number(value: float) -> str:
    """Nine digits tell every single-precision number apart."""
    return f"{value:.9g}"


def write_hyperparameters(board: SummaryWriter, config: dict[str, Any]) -> None:
    """The session's records alone: with the Experiment record that add_hparams writes, each run hides the others."""
    flat = {key: value for key, value in flatten(config).items() if value is not None}
    plain = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in flat.items()}
    _, start, end = hparams(plain, {})  # type: ignore[no-untyped-call]
    assert board.file_writer is not None
    board.file_writer.add_summary(start)
    board.file_writer.add_summary(end)


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"norm": {"eps": 1}} → {"norm.eps": 1}; the name of a choice goes by its group: {"norm": "batch"}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        path = prefix if key == "name" else f"{prefix}.{key}" if prefix else key
        flat.update(flatten(value, path) if isinstance(value, dict) else {path: value})
    return flat


def write_bands(directory: Path, arms: dict[str, dict[int, tuple[float, float, float]]]) -> None:
    """An event file an arm with the mean and the band of its curves, and a layout that overlays the arms.

    `arms`: name → step → mean, lower and upper end of validation accuracy.
    """
    tags = ["comparison/mean", "comparison/lower", "comparison/upper"]
    layout = {
        "comparison": {
            "validation accuracy: mean and band of each arm": ["Margin", tags],
            "validation accuracy of every run": ["Multiline", ["accuracy/validation"]],
        }
    }
    for name, curve in arms.items():
        with SummaryWriter(str(directory / name)) as board:
            board.add_custom_scalars(layout)
            for step, values in curve.items():
                for tag, value in zip(tags, values, strict=True):
                    board.add_scalar(tag, value, step)
