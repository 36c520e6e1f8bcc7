"""The two errors of this package beside the standard ones."""


class UserError(ValueError):
    """Something the user can mend. The message says what is wrong and what to do about it."""


class LostRankError(RuntimeError):
    """A rank died, or did not join a collective in time. Names the rank and its step."""


def placed(error: UserError, place: object) -> UserError:
    """Return an error that names the file or folder that it is about, if it does not yet."""
    return error if str(place) in str(error) else UserError(f"{place}: {error}")
