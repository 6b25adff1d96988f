"""What a run writes while it trains: metrics.csv, timing.csv and TensorBoard's event file, each by a logger."""

import errno
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from bnexp.runs.console import printable
from bnexp.runs.directory import EVENTS, METRICS, RUN, TIMING
from bnexp.runs.files import flush, naming, replaced
from bnexp.training.evaluation import Evaluation

SPEED = "speed"
Values = Mapping[str, float]
LoggerFactories = Sequence[Callable[[Path], "Logger"]]  # each gets the run's directory


def defer_disk_errors(arguments: threading.ExceptHookArgs) -> None:
    """Print no traceback for an OSError in TensorBoard's thread: its next call raises it where it fails the run."""
    if not isinstance(arguments.exc_value, OSError):
        threading.__excepthook__(arguments)


threading.excepthook = defer_disk_errors


class Logger(Protocol):
    """A place where a run's curve is written while it trains. An OSError of any method but `close` fails the run."""

    def log(self, step: int, kind: str, values: Values) -> None:
        """Log what was measured after `step` updates. kind: a split, whose values are "loss", "accuracy" and
        percentiles of activations, "hidden.0/p15"; or "speed": "seconds" trained until then and "steps_per_second".
        """
        ...

    def hyperparameters(self, config: dict[str, Any]) -> None:
        """Log the run's configuration, key → value and nested by group."""
        return

    def sync(self) -> None:
        """Write everything to the disk. Raises OSError where logged values are missing from the files."""
        return

    def close(self) -> None:
        """Release files and threads; nothing is logged afterwards."""
        return


class Recorder:
    """Logs a run's curve to metrics.csv and timing.csv, and to other loggers, by default TensorBoard.

    layers: columns of the activations' percentiles, "hidden.0/p15". until: of a resumed run, the last step whose rows
    are kept; the other loggers begin anew, and these rows are logged to them again.
    """

    def __init__(
        self, directory: Path, layers: list[str], until: int | None = None, others: LoggerFactories | None = None
    ) -> None:
        tables = CsvLogger(directory, layers, until)
        self.loggers: list[Logger] = [tables, *(make(directory) for make in others or [TensorBoardLogger])]
        self.path, self.record = directory / RUN, (directory / RUN).read_bytes()
        for logger in self.loggers[1:]:
            tables.replay(logger)

    def train_loss(self, step: int, loss: float) -> None:
        """Log the mean training loss since the last evaluation."""
        self.log(step, "train", {"loss": rounded(loss)})

    def evaluation(self, step: int, split: str, result: Evaluation) -> None:
        """Log an evaluation; percentiles of activations for the split "validation" alone."""
        activations = result.activations if split == "validation" else {}
        values = {"loss": result.loss, "accuracy": result.accuracy, **activations}
        self.log(step, split, {name: rounded(value) for name, value in values.items()})

    def speed(self, step: int, seconds: float, steps_per_second: float) -> None:
        """Log the total seconds of training up to a step, and the steps a second since the previous evaluation."""
        self.log(step, SPEED, {"seconds": round(seconds, 6), "steps_per_second": round(steps_per_second, 1)})

    def log(self, step: int, kind: str, values: Values) -> None:
        """Log values to every logger."""
        for logger in self.loggers:
            logger.log(step, kind, values)

    def hyperparameters(self, config: dict[str, Any]) -> None:
        """Log the run's configuration."""
        for logger in self.loggers:
            logger.hyperparameters(config)

    def sync(self) -> None:
        """Write all rows to the disk, before a checkpoint or a summary that relies on them. Raises OSError where one of
        the run's files, or its directory, was removed or changed meanwhile.
        """
        for logger in self.loggers:
            logger.sync()
        if self.path.read_bytes() != self.record:
            raise changed(self.path)

    def close(self) -> None:
        """Close every logger. Errors are ignored: `sync` has raised them before."""
        for logger in self.loggers:
            with suppress(OSError):
                logger.close()


class CsvLogger(Logger):
    """Appends rows to metrics.csv and timing.csv. The former holds no clock, so equal runs have equal bytes."""

    def __init__(self, directory: Path, layers: list[str], until: int | None) -> None:
        self.columns = ["loss", "accuracy", *layers]
        self.metrics = Table(directory / METRICS, ["step", "split", *self.columns], until)
        self.timing = Table(directory / TIMING, ["step", "seconds", "steps_per_second"], until)

    def log(self, step: int, kind: str, values: Values) -> None:
        """Append a row; the cell of a value that wasn't measured is empty."""
        if kind == SPEED:
            self.timing.append([str(step), f"{values['seconds']:.6f}", f"{values['steps_per_second']:.1f}"])
        else:
            cells = [format_number(values[column]) if column in values else "" for column in self.columns]
            self.metrics.append([str(step), kind, *cells])

    def replay(self, logger: Logger) -> None:
        """Log the kept rows of a resumed run to another logger."""
        for step, split, *cells in self.metrics.kept:
            values = {column: float(cell) for column, cell in zip(self.columns, cells, strict=True) if cell}
            logger.log(int(step), split, values)
        for step, seconds, rate in self.timing.kept:
            logger.log(int(step), SPEED, {"seconds": float(seconds), "steps_per_second": float(rate)})

    def sync(self) -> None:
        """Write both tables to the disk. Raises OSError where one was removed or changed."""
        self.metrics.sync()
        self.timing.sync()

    def close(self) -> None:
        """Close both tables."""
        with suppress(OSError):
            self.metrics.file.close()
        self.timing.file.close()


class Table:
    """A CSV file that grows by rows. `kept`: the rows up to the step `until`, where an earlier table is continued."""

    def __init__(self, path: Path, header: list[str], until: int | None) -> None:
        new, self.path = until is None, path
        self.kept = [] if until is None else truncate_rows(path, header, until)
        self.digest = hashlib.sha256(b"" if new else path.read_bytes())
        self.file = path.open("w" if new else "a", encoding="utf-8", newline="")
        if new:
            self.append(header)

    def append(self, row: list[str]) -> None:
        """Write a row, in which no cell holds a comma or a quote."""
        line = ",".join(row) + "\n"
        self.digest.update(line.encode())
        with naming(self.path):
            self.file.write(line)
            self.file.flush()

    def sync(self) -> None:
        """Write the rows to the disk. Raises OSError where the file at the path doesn't hold exactly these rows.

        That is so where it was removed, replaced or changed, or its directory was renamed. Inode numbers don't show
        it: a truncated file keeps its number, and some network file systems assign new ones.
        """
        with naming(self.path):
            flush(self.file.fileno(), self.path.parent)
        if hashlib.sha256(self.path.read_bytes()).digest() != self.digest.digest():
            raise changed(self.path)


class TensorBoardLogger(Logger):
    """Writes an event file, and replaces an existing one.

    TensorBoard's writer reopens the file for every record. A file that was removed would begin again without its
    earlier records, so `sync` checks its beginning.
    """

    def __init__(self, directory: Path) -> None:
        for path in directory.glob(EVENTS):
            path.unlink()
        self.directory, self.board = directory, SummaryWriter(str(directory))
        self.path = next(directory.glob(EVENTS), directory / EVENTS)
        self.start = self.path.read_bytes()

    def log(self, step: int, kind: str, values: Values) -> None:
        """Add a scalar for each value except `seconds` and the speed at step 0. Tags: loss/validation,
        activations/hidden.0/p15, speed/steps_per_second.
        """
        if kind == SPEED:
            scalars = {f"speed/{name}": value for name, value in values.items() if step and name != "seconds"}
        else:
            scalars = {f"activations/{name}" if "/" in name else f"{name}/{kind}": v for name, v in values.items()}
        with naming(self.directory):
            for tag, value in scalars.items():
                self.board.add_scalar(tag, value, step)

    def hyperparameters(self, config: dict[str, Any]) -> None:
        """Add the configuration for TensorBoard's HParams tab.

        Only the records of the session are written. `add_hparams` would also write those of an experiment, with which
        each run hides the others.
        """
        flat = {key: value for key, value in flatten(config).items() if value is not None}
        plain = {key: v if isinstance(v, bool | int | float) else printable(str(v)) for key, v in flat.items()}
        _, start, end = hparams(plain, {})  # type: ignore[no-untyped-call]
        assert self.board.file_writer is not None
        self.board.file_writer.add_summary(start)
        self.board.file_writer.add_summary(end)

    def sync(self) -> None:
        """Write the events out. Raises OSError where the file was removed or replaced."""
        with naming(self.directory):
            self.board.flush()
        with self.path.open("rb") as file:
            if file.read(len(self.start)) != self.start:
                raise changed(self.path)

    def close(self) -> None:
        """Close the event file."""
        self.board.close()


def changed(path: Path) -> OSError:
    """Make the error for a file that differs from what the run has written."""
    return OSError(errno.EIO, "was changed or replaced while the run was writing it", str(path))


def truncate_rows(path: Path, header: list[str], until: int) -> list[list[str]]:
    """Remove rows from a table, and return the others without the header.

    Removed are the rows after the step `until`, those of tests, and a row that a killed process had half written.
    Raises OSError for a table that is missing, damaged or a link.
    """
    rows, content = list[list[str]](), b""
    try:
        with path.open("rb") as file:
            for line in file:
                row = line.decode().rstrip("\r\n").split(",")
                if rows and not (line.endswith(b"\n") and int(row[0]) <= until and not row[1].startswith("test")):
                    break
                check_row(row, header, first=not rows)
                rows.append(row)
                content += line
    except FileNotFoundError as error:
        raise OSError(errno.ENOENT, "is missing: the run starts anew once its folder is removed", str(path)) from error
    except (ValueError, IndexError) as error:
        raise damaged(path) from error
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a link, which a run's table never is", str(path))
    if path.stat().st_size != len(content):
        with replaced(path) as new:  # some file systems, as of cloud storage, can't truncate a file
            new.write_bytes(content)
    return rows[1:]


def check_row(row: list[str], header: list[str], first: bool) -> None:
    """Raise ValueError where the first row isn't the header, or a later one has other cells than numbers."""
    if first and row != header:
        raise ValueError
    for name, cell in zip(header, row, strict=True):
        if cell and name != "split" and not first:
            float(cell)


def damaged(path: Path) -> OSError:
    """Make the error for a table from which a run can't be resumed."""
    return OSError(errno.EIO, "is damaged: the run starts anew once its folder is removed", str(path))


def format_number(value: float) -> str:
    """Format a value for metrics.csv: nine digits distinguish all numbers of single precision."""
    return f"{value:.9g}"


def rounded(value: float) -> float:
    """Round a value as metrics.csv does, so that other loggers get the same values from a resumed run."""
    return float(format_number(value))


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a configuration: {"norm": {"name": "batch", "eps": 1}} → {"norm": "batch", "norm.eps": 1}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        path = prefix if key == "name" else f"{prefix}.{key}" if prefix else key
        flat.update(flatten(value, path) if isinstance(value, dict) else {path: value})
    return flat


def write_bands(directory: Path, arms: dict[str, dict[int, tuple[float, float, float]]]) -> None:
    """Write for TensorBoard an event file an arm, with the mean and the band of its curves, and a layout that overlays
    the arms.

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
