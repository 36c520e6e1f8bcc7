"""The live view of many runs: a bar for each that runs, read from what the runs write down."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from memory_layers.study.outcome import read_metrics

SECONDS_BETWEEN_LINES = 20.0


class CompareProgress:
    """Show step, loss and last held-out recall of every run.

    Args:
        steps: Steps of each run, by the name of its folder.
        folder: Where the folders are.
    """

    def __init__(self, steps: Mapping[str, int], folder: Path) -> None:
        self._folder = folder
        self._steps = steps
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._console,
            disable=not sys.stderr.isatty(),
        )
        self._all = self._bar.add_task("all runs", total=sum(steps.values()), status="")
        self._tasks = {
            name: self._bar.add_task(name, total=total, status="", visible=False)
            for name, total in steps.items()
        }
        self._last_line = time.monotonic()

    def look(self) -> None:
        """Read the newest lines of all runs and show them."""
        states = {name: self._state(name) for name in self._steps}
        for name, (step, status) in states.items():
            running = 0 < step < self._steps[name]
            self._bar.update(self._tasks[name], completed=step, status=status, visible=running)
        self._bar.update(self._all, completed=sum(step for step, _ in states.values()))
        now = time.monotonic()
        if self._bar.disable and now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            parts = [
                f"{name} {step}/{self._steps[name]} {status}"
                for name, (step, status) in states.items()
                if 0 < step < self._steps[name]
            ]
            total, done = sum(self._steps.values()), sum(step for step, _ in states.values())
            parts.append(f"all runs {done / total:.0%}")
            self._console.print("  |  ".join(parts), markup=False, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

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

    def _state(self, name: str) -> tuple[int, str]:
        """Return the last step of a run and what is known about it."""
        loss, recall, step = None, None, 0
        for line in read_metrics(self._folder / name):
            step = line["step"]
            loss = line.get("loss", loss)
            recall = line.get("recall", {}).get("question_heldout", recall)
        status = "" if loss is None else f"loss {loss:.2f}"
        return step, status if recall is None else f"{status}  held-out recall {recall:.2f}"
