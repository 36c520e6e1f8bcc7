"""Which rank is missing: every rank notes where it is, and reads the notes when contact is lost."""

import time
from dataclasses import dataclass

import torch.distributed as dist


class LostRankError(RuntimeError):
    """A rank died, or did not join a collective in time. Names the rank and its step."""


@dataclass(frozen=True)
class Note:
    """Where a rank was.

    Attributes:
        rank: Which.
        step: The step it was in, counted from 1. 0: before the first.
        place: 0 at the start of the step, 1 after its last backward pass.
        age: Seconds since then.
    """

    rank: int
    step: int
    place: int
    age: float


class Heartbeat:
    """The notes of all ranks, kept in the store through which they found each other.

    Args:
        store: Shared by all ranks.
        rank: Of this process.
        size: Number of ranks.
    """

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._store = store
        self._rank = rank
        self._size = size
        self.step = 0

    def beat(self, step: int, place: int) -> None:
        """Note where this rank is.

        Args:
            step: Counted from 1.
            place: 0 at the start of the step, 1 after its last backward pass.
        """
        self.step = step
        self._store.set(f"rank-{self._rank}", f"{step} {place} {time.time()}")

    def notes(self) -> list[Note]:
        """Return the last note of every rank that has written one."""
        found = []
        for rank in range(self._size):
            key = f"rank-{rank}"
            if self._store.check([key]):
                step, place, then = self._store.get(key).decode().split()
                found.append(Note(rank, int(step), int(place), time.time() - float(then)))
        return found

    def report(self) -> str:
        """Say which ranks are behind, in words."""
        try:
            notes = self.notes()
        except (RuntimeError, dist.DistError) as error:
            return f"the store of the run is gone too, with the process that held it ({error})"
        silent = sorted(set(range(self._size)) - {note.rank for note in notes})
        if silent:
            return f"never heard of: {_ranks(silent)}"
        first = min((note.step, note.place) for note in notes)
        behind = [note for note in notes if (note.step, note.place) == first]
        if len(behind) == len(notes):
            # All are in one stretch of a step: the one that died or hangs has the oldest note.
            oldest = max(notes, key=lambda note: note.age)
            return (
                f"all ranks were in step {first[0]}; rank {oldest.rank} was heard of last, "
                f"{oldest.age:.0f} s ago"
            )
        ages = ", ".join(f"rank {note.rank} {note.age:.0f} s ago" for note in behind)
        return (
            f"{_ranks([note.rank for note in behind])} did not get beyond {_where(first)}: {ages}"
        )


def is_lost_contact(error: RuntimeError) -> bool:
    """Whether an error of a collective means that another rank is gone or late."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    words = ("timed out", "timeout", "closed by peer", "reset by peer", "broken pipe", "gloo")
    return any(word in str(error).lower() for word in words)


def _ranks(ranks: list[int]) -> str:
    names = ", ".join(map(str, ranks[:8])) + (", …" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {names}"


def _where(place: tuple[int, int]) -> str:
    return f"the {'end' if place[1] else 'start'} of step {place[0]}"
