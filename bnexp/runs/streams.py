"""Standard streams that never raise: output that can't be written is dropped, missing characters are replaced."""

import codecs
import io
import logging
import os
import select
import sys
from typing import Any, TextIO

SPELLED = {"→": "->", "−": "-", "–": "-", "—": "-", "…": "...", "×": "x", "·": ".", "±": "+-", "½": "1/2"}
SPELLED |= {"²": "^2", "≤": "<=", "≥": ">=", "β": "beta", "γ": "gamma"}
ERRORS = "bnexp"  # name of the error handler


class Sink(io.FileIO):
    """A raw stream that drops the bytes of a write for which the system raises an error.

    The next write is tried again: the reader of a pipe may have ended, a full disk may have room later.
    """

    def write(self, data: Any) -> int:
        """Write bytes and return how many were written, which may be fewer than all; wait while a pipe is full.

        Where the system raises an error, all of them are dropped and counted as written.
        """
        try:
            while (written := super().write(data)) is None:  # a pipe that somebody made non-blocking, and that is full
                select.select([], [self], [])
            return written
        except OSError:
            return memoryview(data).nbytes


def spell(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an encoding lacks, as → by ->; return the replacement and the position after them.

    This is an error handler for `codecs.register_error`. Characters without a spelling are written as escapes. Errors
    of decoding are raised.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(SPELLED.get(c, c.encode("ascii", "backslashreplace").decode()) for c in text), error.end


def safe_stream(stream: TextIO | None, handle: int) -> TextIO:
    """Return a text stream whose writes never raise, with the encoding of `stream`, or UTF-8 for None.

    It writes to the descriptor `handle`, which it never closes.
    """
    encoding = stream.encoding if stream is not None else "utf-8"
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(io.BufferedWriter(Sink(handle, "w", closefd=False)), encoding, ERRORS, line_buffering=True)


def open_missing() -> None:
    """Open the closed ones of the standard descriptors 0 to 2 on /dev/null.

    Otherwise, a file that is opened later would get one of these numbers, and printed text would be written to it.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) < 3:  # the lowest number that is free
        os.set_inheritable(handle, True)
    os.close(handle)


def protect_streams() -> None:
    """Replace standard output and standard error so that printing and logging never raise, even at exit."""
    codecs.register_error(ERRORS, spell)
    open_missing()
    sys.stdout, sys.stderr = safe_stream(sys.stdout, 1), safe_stream(sys.stderr, 2)
    logging.raiseExceptions = False  # a log on a full disk: no traceback for each line
