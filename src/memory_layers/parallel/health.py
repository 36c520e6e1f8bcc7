"""Which rank is missing: every rank notes where it is, and reads the notes when contact is lost."""

import os
import sys
import threading
import time
from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

# A rank that still runs has noticed by then that others are gone.
SECONDS_TO_ANSWER = 3.0


@dataclass(frozen=True)
class Note:
    """Where a rank was.

    Attributes:
        rank: Of the rank.
        step: The step it was in, counted from 1. 0: before the first.
        place: 0 at the start of the step, 1 after its last backward pass.
        age: Seconds since then.
    """

    rank: int
    step: int
    place: int
    age: float

    def __str__(self) -> str:
        """Where and when, in words."""
        if self.step == 0:
            return f"last seen before its first step, {self.age:.0f} s ago"
        where = "end" if self.place else "start"
        return f"last seen at the {where} of step {self.step}, {self.age:.0f} s ago"


class Heartbeat:
    """The notes of all ranks, kept in the store through which they found each other.

    Args:
        store: Shared by all ranks.
        rank: Of this process.
        size: Number of ranks.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._store = store
        self.rank = rank
        self._size = size
        self.beat(0, 0)

    def beat(self, step: int, place: int) -> None:
        """Record where this rank is.

        Args:
            step: Counted from 1.
            place: 0 at the start of the step, 1 after its last backward pass.
        """
        self.step = step
        self.last = time.monotonic()
        self._store.set(f"rank-{self.rank}", f"{step} {place} {time.time()}")

    def note(self, rank: int) -> Note | None:
        """Return the last note of a rank. None: it has written none."""
        key = f"rank-{rank}"
        if not self._store.check([key]):
            return None
        step, place, then = self._store.get(key).decode().split()
        return Note(rank, int(step), int(place), time.time() - float(then))

    @property
    def any_lost(self) -> bool:
        """Whether any rank has called `report_lost`."""
        return self._store.check(["lost"])

    def report_lost(self) -> str:
        """Tell the others that contact is lost, and return which rank is missing.

        Ranks that still run report it too, within moments. Those that do not are missing.
        """
        try:
            self._store.set(f"lost-{self.rank}", "")
            self._store.set("lost", "")
            silent = list(range(self._size))
            until = time.monotonic() + SECONDS_TO_ANSWER
            while len(silent) > 1 and time.monotonic() < until:
                time.sleep(0.05)
                silent = [rank for rank in silent if not self._store.check([f"lost-{rank}"])]
            return self.describe(silent) or self.describe_last()
        except (RuntimeError, dist.DistError) as error:
            return f"the store of the run is gone too, with the process that held it ({error})"

    def describe_last(self) -> str:
        """Return which ranks are behind the others, in words."""
        notes = [note for rank in range(self._size) if (note := self.note(rank))]
        first = min((note.step, note.place) for note in notes)
        behind = [note.rank for note in notes if (note.step, note.place) == first]
        if len(behind) == self._size:
            return f"all ranks are in step {first[0]}"
        return self.describe(behind)

    def describe(self, ranks: list[int]) -> str:
        """Return when some ranks were seen last, in words."""
        seen = [f"rank {rank} {self.note(rank) or 'has never answered'}" for rank in ranks[:8]]
        return "; ".join([*seen, f"and {len(ranks) - 8} more ranks"] if ranks[8:] else seen)


class Watchdog(threading.Thread):
    """Reports for a rank whose main thread is stuck, and ends it when the run has lost contact.

    A rank that hangs, or waits in another collective than the one that timed out, would keep its
    machine busy. NCCL ends a process without saying which rank is missing.

    Args:
        heartbeat: Of this rank, on a store of its own: that of the main thread may be waiting.
        main: That of the main thread.
        timeout: Seconds in one place of a step after which this rank says where all are.
    """

    def __init__(self, heartbeat: Heartbeat, main: Heartbeat, timeout: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._heartbeat, self._main, self._timeout = heartbeat, main, timeout
        self._over = threading.Event()

    def stop(self) -> None:
        """End the thread: the run is over."""
        self._over.set()

    def run(self) -> None:
        """Look every few seconds, until `stop`."""
        told = 0.0
        try:
            while not self._over.wait(min(5.0, self._timeout / 4)):
                last = self._main.last
                if time.monotonic() - last > self._timeout and last != told:
                    told = last
                    self._say(f"has been in step {self._main.step} for {self._timeout:.0f} s: "
                              f"{self._heartbeat.describe_last()}")  # fmt: skip
                if self._heartbeat.any_lost and not self._over.wait(2 * SECONDS_TO_ANSWER):
                    self._say(
                        f"ended in step {self._main.step}: another rank has lost contact, and this "
                        "one is stuck"
                    )
                    os._exit(2)
        except (RuntimeError, dist.DistError):
            # The store is gone, and with it the agent that would wait for this process.
            return

    def _say(self, text: str) -> None:
        sys.stderr.write(f"rank {self._main.rank}: {text}\n")
        sys.stderr.flush()


def is_lost_contact(error: BaseException | None) -> bool:
    """Whether an error means that another rank is gone or late."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    if isinstance(error, CheckpointException):
        return any(is_lost_contact(failure) for failure, _ in error.failures.values())
    words = ("timed out", "timeout", "closed by peer", "reset by peer", "broken pipe", "gloo")
    if isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words):
        return True
    return error is not None and is_lost_contact(error.__cause__)
