"""What a run leaves while it trains: metrics.csv, timing.csv and TensorBoard's event file."""

import csv
import errno
import hashlib
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from bnexp.console import printable
from bnexp.engine import Evaluation
from bnexp.files import flush, naming, replaced
from bnexp.runs import EVENTS, METRICS, RUN, TIMING


def hand_over(arguments: threading.ExceptHookArgs) -> None:
    """An error of TensorBoard's thread on a full disk: its next call raises it here, where it is told in a line."""
    if not isinstance(arguments.exc_value, OSError):
        threading.__excepthook__(arguments)


threading.excepthook = hand_over


class Recorder:
    """Appends a row at each evaluation; metrics.csv holds no clock, so equal runs have equal bytes.

    A run that goes on from a checkpoint keeps the rows up to a step (`until`), of which the event file is made anew.
    """

    def __init__(self, directory: Path, layers: list[str], until: int | None = None) -> None:
        self.directory, self.layers = directory, layers
        headers = {METRICS: ["step", "split", "loss", "accuracy", *layers]}
        headers[TIMING] = ["step", "seconds", "steps_per_second"]
        old = [[] if until is None else cut_back(directory / name, columns, until) for name, columns in headers.items()]
        for path in directory.glob(EVENTS):
            path.unlink()
        self.metrics, self.timing = (
            Table(directory / name, columns if until is None else []) for name, columns in headers.items()
        )
        self.board = SummaryWriter(str(directory))
        self.events, self.record = EventFile(directory), (directory / RUN).read_bytes()
        for row in old[0]:
            self.show(row)
        for row in old[1]:
            self.show_speed(row)

    def train_loss(self, step: int, loss: float) -> None:
        self.add([str(step), "train", number(loss), "", *("" for _ in self.layers)])

    def evaluation(self, step: int, split: str, result: Evaluation) -> None:
        values = [result.activations[layer] for layer in self.layers] if split == "validation" else None
        cells = [number(value) for value in values] if values else ["" for _ in self.layers]
        self.add([str(step), split, number(result.loss), number(result.accuracy), *cells])
        self.metrics.flush()

    def speed(self, step: int, seconds: float, steps_per_second: float) -> None:
        row = [str(step), f"{seconds:.6f}", f"{steps_per_second:.1f}"]
        self.timing.add(row)
        self.timing.flush()
        self.show_speed(row)

    def add(self, row: list[str]) -> None:
        self.metrics.add(row)
        self.show(row)

    def show(self, row: list[str]) -> None:
        """A row of metrics.csv in TensorBoard."""
        step, split, loss, accuracy, *values = row
        self.scalar(f"loss/{split}", loss, step)
        if accuracy:
            self.scalar(f"accuracy/{split}", accuracy, step)
        for layer, value in zip(self.layers, values, strict=True):
            if value:
                self.scalar(f"activations/{layer}", value, step)

    def show_speed(self, row: list[str]) -> None:
        step, _, rate = row
        if int(step):
            self.scalar("speed/steps_per_second", rate, step)

    def scalar(self, tag: str, value: str, step: str) -> None:
        with naming(self.directory):
            self.board.add_scalar(tag, float(value), int(step))

    def sync(self) -> None:
        """Rows on the disk, before a checkpoint or a summary that relies on them. Raises OSError where somebody has
        removed or changed one of the run's files, or its directory.
        """
        self.metrics.sync()
        self.timing.sync()
        with naming(self.directory):
            self.board.flush()
        self.events.check()
        if (self.directory / RUN).read_bytes() != self.record:
            raise changed(self.directory / RUN)

    def hyperparameters(self, config: dict[str, Any]) -> None:
        write_hyperparameters(self.board, config)

    def close(self) -> None:
        """Whatever fails here failed before, as the run was closed."""
        for close in (self.metrics.file.close, self.timing.file.close, self.board.close):
            with suppress(OSError):
                close()


class Table:
    """A CSV file that grows by rows, begun with a header; without one it goes on."""

    def __init__(self, path: Path, header: list[str]) -> None:
        self.path, self.digest = path, hashlib.sha256(b"" if header else path.read_bytes())
        self.file = path.open("w" if header else "a", encoding="utf-8", newline="")
        self.writer = csv.writer(self, lineterminator="\n")
        if header:
            self.add(header)

    def add(self, row: list[str]) -> None:
        with naming(self.path):
            self.writer.writerow(row)

    def write(self, line: str) -> None:
        """For `csv`, which hands over a row."""
        self.file.write(line)
        self.digest.update(line.encode())

    def flush(self) -> None:
        with naming(self.path):
            self.file.flush()

    def sync(self) -> None:
        """Rows on the disk. Raises OSError where the file at the path doesn't hold them and nothing else: it was
        removed, replaced or changed, or its directory was renamed. Numbers of inodes wouldn't do, which a file keeps
        that is cut off, and which some network file systems give anew.
        """
        self.flush()
        with naming(self.path):
            flush(self.file.fileno(), self.path.parent)
        if hashlib.sha256(self.path.read_bytes()).digest() != self.digest.digest():
            raise changed(self.path)


class EventFile:
    """TensorBoard's file in a directory. Its writer opens it anew for every record: one that was removed would begin
    again, without what it held.
    """

    def __init__(self, directory: Path) -> None:
        self.path = next(directory.glob(EVENTS), directory / EVENTS)
        self.start = self.path.read_bytes()

    def check(self) -> None:
        """Raises OSError where it was removed, or doesn't begin any more as it began."""
        with self.path.open("rb") as file:
            if file.read(len(self.start)) != self.start:
                raise changed(self.path)


def changed(path: Path) -> OSError:
    return OSError(errno.EIO, "was changed or replaced while the run was writing it", str(path))


def check_row(row: list[str], header: list[str], number: int) -> None:
    """Raises ValueError where it isn't the header, or numbers beside the name of a split."""
    if number == 0 and row != header:
        raise ValueError
    for name, cell in zip(header, row, strict=True):
        if number and cell and name != "split":
            float(cell)


def cut_back(path: Path, header: list[str], step: int) -> list[list[str]]:
    """Cut a table of a run off behind the rows of training up to a step, and return these. What a test wrote, or a
    killed process half, goes. Raises OSError for a damaged or missing table.
    """
    kept, whole = list[list[str]](), b""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                row = next(csv.reader([line.decode()]), [])
                if number and not (line.endswith(b"\n") and int(row[0]) <= step and not row[1].startswith("test")):
                    break
                check_row(row, header, number)
                whole += line
                kept += [row] if number else []
    except FileNotFoundError as error:
        raise OSError(errno.ENOENT, "is missing: the run starts anew once its folder is removed", str(path)) from error
    except (ValueError, IndexError, csv.Error) as error:
        raise damaged(path) from error
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a link, which a run's table never is", str(path))
    if path.stat().st_size != len(whole):
        with replaced(path) as beside:  # where a file can't be cut off, as in a cloud's storage
            beside.write_bytes(whole)
    return kept


def damaged(path: Path) -> OSError:
    return OSError(errno.EIO, "is damaged: the run starts anew once its folder is removed", str(path))


def number(value: float) -> str:
    """Nine digits tell every single-precision number apart."""
    return f"{value:.9g}"


def write_hyperparameters(board: SummaryWriter, config: dict[str, Any]) -> None:
    """The session's records alone: with the Experiment record that add_hparams writes, each run hides the others."""
    flat = {key: value for key, value in flatten(config).items() if value is not None}
    plain = {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in flat.items()}
    plain = {key: printable(value) if isinstance(value, str) else value for key, value in plain.items()}
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
