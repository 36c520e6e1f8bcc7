"""The two errors of this package beside the standard ones."""

from pathlib import Path
from typing import Self


class UserError(ValueError):
    """Something the user can mend. The message says what is wrong and what to do about it."""

    @classmethod
    def at(cls, path: Path, line: int, problem: str, *, expected: str, got: str, hint: str) -> Self:
        """Return the error of a data file, in the one form that all of them use."""
        return cls(f"{path}:{line}: {problem}, expected {expected}, got {got}. hint: {hint}")


class LostRankError(RuntimeError):
    """A rank died, or did not join a collective in time. Names the rank and its step."""
