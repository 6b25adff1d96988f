"""Standard streams whose errors end no run: what can't be written is dropped, what an encoding lacks is spelled."""

import codecs
import errno
import io
import logging
import os
import select
import sys
from typing import Any, TextIO

SPELLED = {"→": "->", "−": "-", "–": "-", "—": "-", "…": "...", "×": "x", "·": ".", "±": "+-", "½": "1/2"}
SPELLED |= {"²": "^2", "≤": "<=", "≥": ">=", "β": "beta", "γ": "gamma"}
ERRORS = "bnexp"  # name of the error handler


class Sink(io.RawIOBase):
    """Writes to a file descriptor, which it never closes. What the system refuses is dropped, and the next write is
    tried again: the reader of a pipe may have left for good, a full disk may have room later.
    """

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def fileno(self) -> int:
        """The descriptor."""
        return self.handle

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self.handle)

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, data: Any) -> int:
        """Write bytes, or drop them; returns how many."""
        while True:
            try:
                return os.write(self.handle, data)
            except BlockingIOError:  # a pipe that somebody else has made non-blocking, and that is full
                select.select([], [self.handle], [])
            except OSError:
                return memoryview(data).nbytes


def spell(error: UnicodeError) -> tuple[str, int]:
    """For `codecs.register_error`: spell the characters that an encoding lacks, and return where they end."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(SPELLED.get(c, c.encode("ascii", "backslashreplace").decode()) for c in text), error.end


def safe_stream(stream: TextIO | None, handle: int) -> TextIO:
    """A stream like this one, which may be None, on the same descriptor; writing to it never raises."""
    encoding = stream.encoding if stream is not None else "utf-8"
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(io.BufferedWriter(Sink(handle)), encoding, ERRORS, line_buffering=True)


def open_missing() -> None:
    """Open closed standard descriptors on /dev/null: a file opened later would get their number, and what is printed
    would go into it.
    """
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError as error:
            if error.errno != errno.EBADF:
                continue
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free: this one


def protect_streams() -> None:
    """From here on, printing and logging in this process never raise, not even as it ends."""
    codecs.register_error(ERRORS, spell)
    open_missing()
    sys.stdout, sys.stderr = safe_stream(sys.stdout, 1), safe_stream(sys.stderr, 2)
    logging.raiseExceptions = False  # a log on a full disk: no traceback for each line
