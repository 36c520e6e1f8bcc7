"""What is timed must be right."""


class WrongResultError(RuntimeError):
    """A variant whose result is wrong: its time is worth nothing, so none is reported."""
