"""Write bnexp.log in a run's directory: the messages that are logged while the run is opened, trained and closed."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.logging import RichHandler

from bnexp.runs.console import errors, print_error, print_once
from bnexp.runs.directory import LOG

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_up_logging() -> None:
    """Send warnings of libraries to standard error. Messages of bnexp itself go only to the logs of runs."""
    root = logging.getLogger()
    if not any(isinstance(handler, RichHandler) for handler in root.handlers):
        handler = RichHandler(logging.WARNING, console=errors, show_path=False)
        handler.addFilter(lambda record: record.name != "bnexp")
        root.addHandler(handler)


class RunLog(logging.Handler):
    """A logging handler that appends each message to the logs of several runs.

    A log that can't be written gets no further messages, and an error is printed, unless its directory was removed.
    """

    def __init__(self, directories: list[Path]) -> None:
        super().__init__()
        self.paths = [directory / LOG for directory in directories]
        self.setFormatter(logging.Formatter(FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        """Append a message to each log."""
        for path in list(self.paths):
            try:
                with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(f"{self.format(record)}\n")
            except OSError as error:
                self.paths.remove(path)
                if path.parent.is_dir():
                    print_once(f"{path}: {error.strerror}: the run continues without a log", print_error)


@contextmanager
def run_log(directories: list[Path], verbose: object = False) -> Iterator[None]:
    """Append messages of level INFO and above to the logs of these runs during the `with` body.

    verbose: the value of `hydra.verbose`: true for level DEBUG, or the names of loggers with level DEBUG.
    """
    names = [verbose] if isinstance(verbose, str) else verbose if isinstance(verbose, list) else []
    levels = {logging.getLogger(): logging.DEBUG if verbose is True else logging.INFO}
    levels |= {logging.getLogger(str(name)): logging.DEBUG for name in names}
    before = {logger: logger.level for logger in levels}
    handler = RunLog(directories)
    for logger, level in levels.items():
        logger.setLevel(level)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        for logger, level in before.items():
            logger.setLevel(level)
