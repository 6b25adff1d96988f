"""The loggers of a run, which write metrics.csv, timing.csv and TensorBoard's event file while it trains."""

import errno
import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from bnexp.runs.console import printable
from bnexp.runs.directory import EVENTS, METRICS, RUN, TIMING, flatten
from bnexp.runs.files import flush, naming, replaced
from bnexp.training.evaluation import Evaluation

SPEED = "speed"
Values = Mapping[str, float]
LoggerFactories = Sequence[Callable[[Path], "Logger"]]  # each is called with the run's directory


def defer_disk_errors(arguments: threading.ExceptHookArgs) -> None:
    """Print no traceback for an OSError in a thread; exceptions of other types are printed as usual.

    It is installed as `threading.excepthook`, for TensorBoard's thread: the writer's next call raises the error again,
    which fails the run.
    """
    if not isinstance(arguments.exc_value, OSError):
        threading.__excepthook__(arguments)


threading.excepthook = defer_disk_errors


class Logger(Protocol):
    """The interface of a logger of a run's metrics. An OSError of any method but `close` fails the run."""

    def log(self, step: int, kind: str, values: Values) -> None:
        """Log values that were measured after `step` updates.

        kind: either a split ("train", "validation", "test", "test_recalibrated"), with those of the values "loss",
        "accuracy" and percentiles of activations, such as "hidden.0/p15", that it has; or "speed", with the values
        "seconds" (of training so far) and "steps_per_second".
        """
        ...

    def hyperparameters(self, config: dict[str, Any]) -> None:
        """Log the run's configuration: key → value, nested by group."""
        return

    def sync(self) -> None:
        """Write everything to the disk. Raises OSError if logged values are missing from the files."""
        return

    def close(self) -> None:
        """Release files and threads. Nothing is logged afterwards."""
        return


class Recorder:
    """The recorder of a run, which logs its metrics to metrics.csv and timing.csv, and to other loggers.

    directory: the run's, with its run.json. layers: columns of the activations' percentiles, such as "hidden.0/p15".
    until: None for a new run; for a resumed run, the last step whose rows stay in the tables. The other loggers start
    empty, and the rows that stay are logged to them again. others: functions that make the other loggers from the
    directory; by default only TensorBoard's.
    """

    def __init__(
        self, directory: Path, layers: list[str], until: int | None = None, others: LoggerFactories | None = None
    ) -> None:
        self.columns = ["loss", "accuracy", *layers]
        self.metrics = Table(directory / METRICS, ["step", "split", *self.columns], until)
        self.timing = Table(directory / TIMING, ["step", "seconds", "steps_per_second"], until)
        self.loggers: list[Logger] = [make(directory) for make in ([TensorBoardLogger] if others is None else others)]
        self.parts: list[Table | Logger] = [self.metrics, self.timing, *self.loggers]
        self.path, self.record = directory / RUN, (directory / RUN).read_bytes()
        self.replay()

    def train_loss(self, step: int, loss: float) -> None:
        """Log the mean training loss since the last evaluation."""
        self.log(step, "train", {"loss": loss})

    def evaluation(self, step: int, split: str, result: Evaluation) -> None:
        """Log an evaluation. Percentiles of activations are logged for the split "validation" only."""
        activations = result.activations if split == "validation" else {}
        self.log(step, split, {"loss": result.loss, "accuracy": result.accuracy, **activations})

    def speed(self, step: int, seconds: float, steps_per_second: float) -> None:
        """Log the seconds of training so far, and the steps per second since the previous evaluation."""
        self.timing.append([str(step), f"{seconds:.6f}", f"{steps_per_second:.1f}"])
        self.pass_on(step, SPEED, {"seconds": round(seconds, 6), "steps_per_second": round(steps_per_second, 1)})

    def log(self, step: int, split: str, values: Values) -> None:
        """Append a row to metrics.csv, and log its values to the other loggers.

        The cell of a value that wasn't measured is empty. The file has no times, so equal runs write equal bytes.
        """
        cells = [format_number(values[column]) if column in values else "" for column in self.columns]
        self.metrics.append([str(step), split, *cells])
        self.pass_on(step, split, {name: rounded(value) for name, value in values.items()})

    def replay(self) -> None:
        """Log the rows that a resumed run has already to the other loggers."""
        for step, split, *cells in self.metrics.kept:
            values = {column: float(cell) for column, cell in zip(self.columns, cells, strict=True) if cell}
            self.pass_on(int(step), split, values)
        for step, seconds, rate in self.timing.kept:
            self.pass_on(int(step), SPEED, {"seconds": float(seconds), "steps_per_second": float(rate)})

    def pass_on(self, step: int, kind: str, values: Values) -> None:
        """Log values to the other loggers."""
        for logger in self.loggers:
            logger.log(step, kind, values)

    def hyperparameters(self, config: dict[str, Any]) -> None:
        """Log the run's configuration to the other loggers."""
        for logger in self.loggers:
            logger.hyperparameters(config)

    def sync(self) -> None:
        """Write all rows to the disk, before a checkpoint or a summary that relies on them.

        Raises OSError if they can't be written, or if one of these files, run.json or the directory was removed or
        changed meanwhile; of TensorBoard's file, only the beginning is compared.
        """
        for part in self.parts:
            part.sync()
        if self.path.read_bytes() != self.record:
            raise changed(self.path)

    def close(self) -> None:
        """Close every table and logger. An OSError is ignored, since `sync` has raised it before."""
        for part in self.parts:
            with suppress(OSError):
                part.close()


class Table:
    """A CSV file to which rows are appended.

    until: None for a new file, which replaces an existing one; else the rows of an existing file up to and including
    this step, but not those of tests, remain and are in `kept`, and all others are removed by `truncate_rows`, which
    raises OSError for a file that is missing, damaged or a link.
    """

    def __init__(self, path: Path, header: list[str], until: int | None) -> None:
        new, self.path = until is None, path
        self.kept = [] if until is None else truncate_rows(path, header, until)
        self.digest = hashlib.sha256(b"" if new else path.read_bytes())
        self.file = path.open("w" if new else "a", encoding="utf-8", newline="")
        if new:
            self.append(header)

    def append(self, row: list[str]) -> None:
        """Append a row. None of its cells may contain a comma or a quote."""
        line = ",".join(row) + "\n"
        self.digest.update(line.encode())
        with naming(self.path):
            self.file.write(line)
            self.file.flush()

    def sync(self) -> None:
        """Write the rows to the disk. Raises OSError if the file at the path doesn't contain exactly these rows.

        Then it was removed, replaced or changed, or its directory was renamed. Inode numbers don't show this: a
        truncated file has the same number, and some network file systems assign new ones.
        """
        with naming(self.path):
            flush(self.file.fileno(), self.path.parent)
        if hashlib.sha256(self.path.read_bytes()).digest() != self.digest.digest():
            raise changed(self.path)

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class TensorBoardLogger(Logger):
    """The logger of TensorBoard's event file, which deletes an existing one.

    TensorBoard's writer reopens the file for every record. If the file was removed, it would begin again without the
    earlier records, so `sync` checks its beginning.
    """

    def __init__(self, directory: Path) -> None:
        for path in directory.glob(EVENTS):
            path.unlink()
        self.board = SummaryWriter(str(directory))
        self.path = next(directory.glob(EVENTS), directory / EVENTS)
        self.start = self.path.read_bytes()

    def log(self, step: int, kind: str, values: Values) -> None:
        """Add a scalar for each value except "seconds" and, at step 0, "steps_per_second".

        Tags: "loss/validation", "activations/hidden.0/p15", "speed/steps_per_second".
        """
        if kind == SPEED:
            scalars = {f"speed/{name}": value for name, value in values.items() if step and name != "seconds"}
        else:
            scalars = {f"activations/{name}" if "/" in name else f"{name}/{kind}": v for name, v in values.items()}
        with naming(self.path):
            for tag, value in scalars.items():
                self.board.add_scalar(tag, value, step)

    def hyperparameters(self, config: dict[str, Any]) -> None:
        """Add the configuration for TensorBoard's HParams tab, without values that are None.

        Only the records of a session are written. `add_hparams` would also write those of an experiment, with which
        each run hides the others.
        """
        values = {key: value for key, value in flatten(config).items() if value is not None}
        plain = {key: v if isinstance(v, bool | int | float) else printable(str(v)) for key, v in values.items()}
        _, start, end = hparams(plain, {})  # type: ignore[no-untyped-call]
        assert self.board.file_writer is not None
        self.board.file_writer.add_summary(start)
        self.board.file_writer.add_summary(end)

    def sync(self) -> None:
        """Flush the events to the file. Raises OSError if the file was removed or replaced."""
        with naming(self.path):
            self.board.flush()
        with self.path.open("rb") as file:
            if file.read(len(self.start)) != self.start:
                raise changed(self.path)

    def close(self) -> None:
        """Close the event file."""
        self.board.close()


def changed(path: Path) -> OSError:
    """Make the error for a file whose content is not what the run has written."""
    return OSError(errno.EIO, "was changed or replaced while the run was writing it", str(path))


def truncate_rows(path: Path, header: list[str], until: int) -> list[list[str]]:
    """Remove rows from a resumed run's table, and return the remaining ones without the header.

    The first row that is later than the step `until`, belongs to a test or is incomplete is removed, with all rows
    after it. Raises OSError for a table that is missing, damaged or a link, but not for an empty file.
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
        with replaced(path) as new:  # some file systems, like those of cloud storage, can't truncate
            new.write_bytes(content)
    return rows[1:]


def check_row(row: list[str], header: list[str], first: bool) -> None:
    """Raise ValueError if the first row isn't the header, or if a later one has another number of cells, or a cell that
    should be a number or empty and isn't.
    """
    if first and row != header:
        raise ValueError
    for name, cell in zip(header, row, strict=True):
        if cell and name != "split" and not first:
            float(cell)


def damaged(path: Path) -> OSError:
    """Make the error for a table from which a run can't be resumed."""
    return OSError(errno.EIO, "is damaged: the run starts anew once its folder is removed", str(path))


def format_number(value: float) -> str:
    """Format a value for metrics.csv with nine digits, which distinguish all numbers of single precision."""
    return f"{value:.9g}"


def rounded(value: float) -> float:
    """Round a value as metrics.csv does, so that other loggers get the same values from a resumed run."""
    return float(format_number(value))


def write_bands(directory: Path, arms: Mapping[str, Sequence[Iterable[float]]]) -> None:
    """Write an event file for each arm, with the mean and interval of its validation accuracy, and a TensorBoard layout
    that overlays the arms.

    arms: name → (steps, means, lower ends, upper ends) of validation accuracy.
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
            for step, *values in zip(*curve, strict=True):
                for tag, value in zip(tags, values, strict=True):
                    board.add_scalar(tag, value, int(step))
