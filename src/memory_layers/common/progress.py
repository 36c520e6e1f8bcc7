"""How far some work is: a bar on a terminal, a line now and then in a log file."""

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self, TypeVar

from memory_layers.common.text import printable

if TYPE_CHECKING:
    from rich.progress import Progress

# Called with what is done, how much there is, and the name of the work.
Report = Callable[[int, int, str], object]
Item = TypeVar("Item")

# Of a log file: until the first line, so that short work says nothing, and between two lines.
FIRST_LINE, NEXT_LINES = 2.0, 10.0


class ProgressLine:
    """Show one piece of work after another on stderr, with the time left.

    Args:
        show: Print anything at all.
        one: A bar that is over makes room for the next one.
    """

    def __init__(self, *, show: bool = True, one: bool = False) -> None:
        self._show = show
        self._bar = _bar(show=show) if sys.stderr.isatty() else None
        self._name: str | None = None
        self._one = one

    def update(self, done: int, total: int, name: str, status: str = "") -> None:
        """Show how far the work is.

        Args:
            done: Of `total`.
            total: How much there is.
            name: Of the work. Another name than before begins another bar.
            status: Shown behind the bar, and in a log file at the end too.
        """
        name, status = printable(name), printable(status)
        now = time.monotonic()
        if name != self._name:
            if self._bar and self._one and self._name is not None:
                self._bar.remove_task(self._task)
            self._name, self._first, self._last = name, done, -1
            self._started, self._due = now, now + FIRST_LINE
            if self._bar:
                self._task = self._bar.add_task(name, total=total, completed=done, status=status)
        if self._bar:
            self._bar.update(self._task, completed=done, status=status)
        # Who waits for something after the end says the same again and again.
        ends, self._last = done == total != self._last, done
        if self._bar is None and (now > self._due or (status and ends)):
            self._due = now + NEXT_LINES
            line = f"{name} {done:,}/{total:,}"
            if done > self._first:
                left = (now - self._started) / (done - self._first) * (total - done)
                line += f"  {left:.0f} s left"
            self.say(f"{line}  {status}".rstrip())

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        text = printable(text)
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif self._show:
            sys.stderr.write(f"{text}\n")
            sys.stderr.flush()

    def __enter__(self) -> Self:
        """Start the display."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last state on the screen."""
        if self._bar:
            self._bar.stop()


def _bar(*, show: bool) -> "Progress":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
        console=Console(stderr=True, quiet=not show),
    )


def counted(items: Iterable[Item], total: int, name: str, report: Report | None) -> Iterator[Item]:
    """Yield items and report how many were taken.

    Args:
        items: What the work is done on.
        total: How many there are.
        name: Of the work.
        report: None: nobody wants to know.
    """
    every = max(1, total // 1000)
    for done, item in enumerate(items):
        if report is not None and done % every == 0:
            report(done, total, name)
        yield item
    if report is not None and total:
        report(total, total, name)


def counter(total: int, name: str, progress: Report | None) -> Callable[[int], object]:
    """Return what adds up how much is done, and reports it.

    Args:
        total: How much there is.
        name: Of the work.
        progress: Called with what is done, the total and the name.
    """
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total, name)

    return count


def tell(notes: Iterable[str], report: Report | None) -> None:
    """Print what is to be known of some work, a line for each note.

    Args:
        notes: The lines.
        report: As of the work. None: nobody wants to know.
    """
    if report is not None:
        for note in notes:
            sys.stderr.write(f"{printable(note)}\n")


@contextmanager
def progress_of(name: str, total: int) -> Generator[Callable[[int], None]]:
    """Show the progress of one piece of work, done in a `with` block.

    Args:
        name: Of the work.
        total: How much there is.

    Yields:
        To be called with what is done since the last call.
    """
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        line.update(done, total, name)

    with ProgressLine() as line:
        line.update(0, total, name)
        yield advance
