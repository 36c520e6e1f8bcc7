"""What can go wrong with a benchmark: it was asked for wrongly, or what it times is wrong."""


class BenchError(ValueError):
    """A benchmark that cannot be run as asked, or a file that holds none."""


class WrongResultError(RuntimeError):
    """A variant whose result is wrong: its time is worth nothing, so none is reported."""
