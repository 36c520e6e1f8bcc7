"""The live line of a run: a bar on a terminal, a line now and then in a log file."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class TrainProgress:
    """Show step, loss, tokens/s, time left, and the share of slots used.

    Args:
        name: Shown before the bar.
        steps: Of the whole run.
        done: Steps done before, for a resumed run.
        show: Print anything at all.
    """

    def __init__(self, name: str, steps: int, done: int, *, show: bool) -> None:
        self._console = Console(stderr=True, quiet=not show)
        self._name = name
        self._steps = steps
        self._first = done
        self._started = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._bar.add_task(name, total=steps, completed=done, status="")

    def update(self, step: int, status: str) -> None:
        """Show a status.

        Args:
            step: Steps done.
            status: Loss and rates as text.
        """
        self._bar.update(self._task, completed=step, status=status)
        now = time.monotonic()
        if self._bar.disable and (
            now - self._last_line > SECONDS_BETWEEN_LINES or step == self._steps
        ):
            self._last_line = now
            left = (now - self._started) / max(1, step - self._first) * (self._steps - step)
            self.say(f"{self._name} {step}/{self._steps} {left:.0f} s left  {status}")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._bar.console.print(text, markup=False, highlight=False)

    def __enter__(self) -> Self:
        """Start the display."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen."""
        self._bar.stop()
