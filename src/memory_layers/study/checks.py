"""Checks of values that were read from JSON: what is wrong is named by its path.

Next: results.py, which says of what results.json is made.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from memory_layers.common.errors import UserError

# Raises a UserError for a value that is not as it must be, with its path.
Check = Callable[[Any, str], None]
# Sums and logarithms of what is below it are numbers.
MOST = 1e30


def fail(where: str, expected: str, got: object) -> None:
    """Refuse a value.

    Raises:
        UserError: Always.
    """
    shown = repr(got)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    raise UserError(f"{where} must be {expected}, got {shown}")


def number(
    least: float = -MOST, most: float = MOST, *, whole: bool = False, loose: bool = False
) -> Check:
    """Check numbers. Loose: those of a loss that was lost too, NaN and infinity."""
    kind = "a whole number" if whole else "a number"
    expected = f"{kind} from {least:g} to {most:g}"

    def check(value: Any, where: str) -> None:  # noqa: ANN401
        right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        right = right and not (isinstance(value, int) and abs(value) >= 2**63)
        lost = loose and isinstance(value, float) and not math.isfinite(value)
        if not right or not (least <= value <= most or lost):
            fail(where, expected, value)

    return check


def of_type(kind: type, expected: str) -> Check:
    """Check values of one type."""

    def check(value: Any, where: str) -> None:  # noqa: ANN401
        if not isinstance(value, kind):
            fail(where, expected, value)

    return check


def one_of(*names: str) -> Check:
    """Check names of a list."""

    def check(value: Any, where: str) -> None:  # noqa: ANN401
        if value not in names:
            fail(where, f"one of {', '.join(names)}", value)

    return check


def anything(_value: Any, _where: str) -> None:  # noqa: ANN401
    """Let everything pass."""


def nullable(part: Check) -> Check:
    """Check values that may be None."""

    def check(value: Any, where: str) -> None:  # noqa: ANN401
        if value is not None:
            part(value, where)

    return check


def list_of(part: Check, length: int | None = None) -> Check:
    """Check lists, of any length or of one."""

    def check(value: Any, where: str) -> None:  # noqa: ANN401
        if not isinstance(value, list) or (length is not None and len(value) != length):
            fail(where, "a list" + (f" of {length}" if length else ""), value)
        for number, item in enumerate(value):
            part(item, f"{where}[{number}]")

    return check


def map_of(part: Check) -> Check:
    """Check a mapping of any names."""

    def check(value: Any, where: str) -> None:  # noqa: ANN401
        if not isinstance(value, dict):
            fail(where, "a mapping", value)
        for name, item in value.items():
            part(item, f"{where}.{name}")

    return check


def record(required: Mapping[str, Check], optional: Mapping[str, Check]) -> Check:
    """Check a mapping of known names. Those that are optional may be missing."""

    def check(value: Any, where: str) -> None:  # noqa: ANN401
        map_of(anything)(value, where)
        # The path of the file ends with a colon, those within it with their last field.
        inner = f"{where} " if where.endswith(":") else f"{where}."
        for name, part in required.items():
            if name not in value:
                raise UserError(f"{inner}{name} is missing")
            part(value[name], f"{inner}{name}")
        for name, part in optional.items():
            if name in value:
                part(value[name], f"{inner}{name}")

    return check
