"""Numbers, tables and hints for people."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

# What a terminal obeys: control characters but for tabs and ends of lines, and marks that turn the
# direction of what follows.
_STEERS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\r(?!\n)")


def short_number(value: float) -> str:
    """Return a count with three digits and a suffix: 1234567 becomes "1.23M"."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        # 999,600 must read 1.00M, not 1000k.
        if abs(value) >= size * 0.9995:
            scaled = value / size
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{digits}f}{suffix}"
    return f"{value:.0f}"


def short_bytes(count: float) -> str:
    """Return a number of bytes in powers of 1000, as data sheets do: "9.82 GB"."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a GitHub table whose columns but the first are aligned to the right.

    Args:
        head: Titles of the columns.
        rows: Cells, as Markdown.
    """
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|:---|" + "---:|" * (len(head) - 1), *lines[1:]])


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the hint for an unknown name: the closest known one, or all of them."""
    names = list(known)
    close = get_close_matches(str(name), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"one of {', '.join(names)}"


def printable(text: str) -> str:
    """Return a text with escapes, as in JSON, in place of what would steer a terminal."""
    return _STEERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def show(text: str) -> None:
    """Print a text to stdout. A file or a pipe gets it as it is, a terminal `printable`."""
    sys.stdout.write(f"{printable(text) if sys.stdout.isatty() else text}\n")


def stdout_has_unicode() -> bool:
    """Tell whether stdout takes every letter, as UTF-8 does."""
    return (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")


def json_shown(values: object) -> str:
    """Return JSON for stdout, with letters that stdout does not take as JSON escapes them."""
    return json.dumps(values, indent=2, ensure_ascii=not stdout_has_unicode())


def rendered(*parts: Any, width: int | None = None) -> str:  # noqa: ANN401
    """Return what rich prints of some parts, without colours, as text for stdout.

    Args:
        *parts: Tables, groups, texts.
        width: In letters. None: that of the terminal.
    """
    from rich.console import Console

    # It draws tables with the letters that stdout takes.
    console = Console(width=width, color_system=None)
    with console.capture() as shown:
        for part in parts:
            console.print(part)
    return shown.get().rstrip()
