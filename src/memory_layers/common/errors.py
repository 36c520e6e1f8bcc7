"""The two errors of this package beside the standard ones, and one of torch that has no type."""

import errno


class UserError(ValueError):
    """Something the user can mend. The message says what is wrong and what to do about it."""


class LostRankError(RuntimeError):
    """A rank died, or did not join a collective in time. Names the rank and its step."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, of the host or of a GPU."""
    # torch has a type of its own for a full GPU and none for a full host.
    is_full = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, RuntimeError) and is_full)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    )


def in_words(error: OSError) -> str:
    """Return what an error of the system says, without its number, and what to do."""
    if error.errno is None or error.strerror is None:
        return str(error)
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "free disk space" if error.errno in full else "look whether it is there and may be used"
    place = "" if error.filename is None else f"{error.filename}: "
    return f"{place}{error.strerror}. hint: {hint}, and run the same command again"


def placed(error: UserError, place: object) -> UserError:
    """Return an error that names the file or folder that it is about, if it does not yet."""
    return error if str(place) in str(error) else UserError(f"{place}: {error}")
