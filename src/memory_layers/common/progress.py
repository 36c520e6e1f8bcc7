"""How far long work is, on stderr: a bar on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

# Until the first line and between two lines of a log. Short work says nothing.
FIRST_LINE = 2.0
NEXT_LINES = 10.0


@contextmanager
def progress_of(title: str, total: int | None = None) -> Generator[Callable[[int], None]]:
    """Show the progress of what is done in a `with` block.

    Args:
        title: What is done.
        total: Steps there are. None: not known.

    Yields:
        To be called with a number of steps that are done since the last call.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(title, total=total)
        done, due = 0, time.monotonic() + FIRST_LINE

        def advance(steps: int) -> None:
            nonlocal done, due
            done += steps
            bar.advance(task, steps)
            if bar.disable and time.monotonic() > due:
                due = time.monotonic() + NEXT_LINES
                of = "" if total is None else f" of {total:,}"
                console.print(f"{title}: {done:,}{of}", markup=False, highlight=False)

        yield advance
