"""What a benchmark is doing, on stderr: a live line on a terminal, one line a step in a log."""

from collections.abc import Generator
from contextlib import contextmanager

from benchmarks.timing import Report


@contextmanager
def shown(op: str) -> Generator[Report]:
    """Yield a function that shows a line.

    Args:
        op: Named before each line.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)
    if console.is_terminal:
        with console.status(op) as status:
            yield lambda line: status.update(f"{op}: {line}")
        return
    last = ""

    def report(line: str) -> None:
        nonlocal last
        # Of many rounds a log shows the first.
        step = line.split(", round")[0]
        if step.split()[0] != "timing" or last.split()[:1] != ["timing"]:
            console.print(f"{op}: {line}", soft_wrap=True)
        last = step

    yield report
