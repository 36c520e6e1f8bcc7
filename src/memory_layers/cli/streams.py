"""stdout and stderr as the command finds them: of any encoding, closed, or a pipe that ends."""

import io
import os
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager

_COLUMNS = re.compile(r"-\d+|0*[1-3]?\d")
# What a shell reports of a process that SIGPIPE has ended.
BROKEN_PIPE = 141


class NobodyReads(Exception):  # noqa: N818
    """What stdout goes to has ended, as `head` does when it has enough. That is no error."""


@contextmanager
def standard_streams() -> Generator[None]:
    """Make standard streams that take every letter, and write out at the end what they hold.

    Names of files need not be UTF-8, and not every stdout takes all letters. Streams that are
    closed are opened to nowhere: the number of a closed one would go to the next file that is
    opened, and with it what is printed. A width of less than 40 columns in the environment does
    not count.

    Raises:
        NobodyReads: stdout is a pipe that is closed at its other end.
        OSError: stdout cannot be written, as on a full disk.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            # It takes the lowest number that is free, which is that of the stream.
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if _COLUMNS.fullmatch(os.environ.get("COLUMNS", "")):
        # Nothing can be shown in so few. Without it the terminal is asked.
        del os.environ["COLUMNS"]
    try:
        yield
    except BrokenPipeError:
        # Of stdout, if a line more is refused too.
        _flush("\n")
        raise
    finally:
        _flush()


def _flush(more: str = "") -> None:
    try:
        sys.stdout.write(more)
        sys.stdout.flush()
    except OSError as error:
        # Python would try once more when it ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            raise NobodyReads from error
        raise
