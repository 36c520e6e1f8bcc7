"""The checks that configurations share. Next: config.py and moe_config.py."""

from collections.abc import Iterable
from dataclasses import fields
from difflib import get_close_matches
from typing import Any


def check_fields(kind: type[Any], given: Iterable[str]) -> None:
    """Refuse names that are no fields of a dataclass.

    Args:
        kind: The dataclass.
        given: The names.

    Raises:
        ValueError: A name is unknown. The closest field is given.
    """
    known = [field.name for field in fields(kind)]
    for name in given:
        if name not in known:
            close = get_close_matches(str(name), known, n=1)
            hint = f"hint: did you mean {close[0]!r}?" if close else f"known: {known}"
            raise ValueError(f"{kind.__name__} has no field {name!r}. {hint}")


def check_whole(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number of at least `least`.

    Args:
        name: Argument name for the error.
        value: What was given.
        least: The smallest number allowed.

    Raises:
        ValueError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
