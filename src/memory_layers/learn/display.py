"""How far a teaching is, for people: a row for each measurement, and a bar for what goes on."""

import sys
from typing import Self

from memory_layers.common.progress import ProgressLine
from memory_layers.learn.report import growth
from memory_layers.learn.result import Point

_HEAD = "  pass    loss   recall: seen  not seen   forgotten: text  answers   minutes left"


class Display:
    """Shows learning and forgetting side by side on stderr: a `Progress`.

    In a log file a row is enough: parts of the work are shown until the first one.

    Args:
        minutes: Most that the teaching takes.
    """

    def __init__(self, minutes: float) -> None:
        self._line = ProgressLine(one=True)
        self._seconds = 60 * minutes
        self._headed = False

    def stage(self, text: str) -> None:
        """Say what begins."""
        self._line.say(text)

    def work(self, done: int, total: int, name: str) -> None:
        """Show how far a part of the work is."""
        if not self._headed or sys.stderr.isatty():
            self._line.update(done, total, name)

    def point(self, point: Point) -> None:
        """Show a row."""
        if not self._headed:
            self._headed = True
            self._line.say(_HEAD)
        unseen = "-" if point.recall_unseen is None else f"{point.recall_unseen:.3f}"
        lost = "-" if point.kept is None else f"{100 * (1 - point.kept):.1f} %"
        left = max(0.0, self._seconds - point.seconds)
        self._line.say(
            f"{point.passes:6d}{point.loss:8.3f}{point.recall_seen:15.3f}{unseen:>10}"
            f"{growth(point.text_loss):>18}{lost:>9}{left / 60:15.1f}"
        )

    def __enter__(self) -> Self:
        """Start the display."""
        self._line.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last state on the screen."""
        self._line.__exit__()
