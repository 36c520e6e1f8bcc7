"""Ctrl-C and SIGTERM end a run between two steps, never inside one."""

import signal
import sys
import threading
from types import FrameType
from typing import Self


class StopSignal:
    """Within the `with` block, a signal sets `requested`, a second one of its kind stops at once.

    Ctrl-C reaches the workers of a comparison twice, from the terminal and as SIGTERM from their
    parent: one of each kind is one request. Of two blocks, one in the other, each knows what has
    reached the other.

    Args:
        show: Say that the signal has arrived.

    Attributes:
        seen: Numbers of the signals that have arrived.
    """

    def __init__(self, *, show: bool = True) -> None:
        self._show = show
        self.seen: set[int] = set()
        self._before: dict[int, object] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has arrived."""
        return bool(self.seen)

    def __enter__(self) -> Self:
        """Take the signals over. Only the main thread of a process may do so."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = before = signal.signal(number, self._on_signal)
                outer = getattr(before, "__self__", None)
                if isinstance(outer, StopSignal):
                    self.seen = outer.seen
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # ty: ignore[invalid-argument-type]

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in self.seen:
            raise KeyboardInterrupt
        is_first = not self.seen
        self.seen.add(number)
        if self._show and is_first:
            sys.stderr.write(
                "\nstopping after this step, saving a checkpoint. Again to stop at once\n"
            )
