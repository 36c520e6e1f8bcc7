"""The checks that configurations share."""

import math

from memory_layers.common.errors import UserError


def check_whole(name: str, value: object, least: int, most: float = math.inf) -> None:
    """Refuse anything but a whole number of at least `least`.

    Args:
        name: Argument name for the error.
        value: What was given.
        least: The smallest number allowed.
        most: The largest one.

    Raises:
        UserError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        is_above = isinstance(value, int | float) and value > most
        limit = f" and <= {most}" if is_above else ""
        raise UserError(f"{name} must be a whole number >= {least}{limit}, got {value!r}")


def check_seed(name: str, value: object) -> None:
    """Refuse what is no seed for a generator of torch, also with something added.

    Args:
        name: Argument name for the error.
        value: What was given.

    Raises:
        UserError: It is something else.
    """
    check_whole(name, value, 0, 2**63 - 1)


def check_number(name: str, value: object) -> None:
    """Refuse anything but a finite number of at least 0.

    Args:
        name: Argument name for the error.
        value: What was given.

    Raises:
        UserError: It is something else.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < math.inf:
        raise UserError(f"{name} must be a finite number >= 0, got {value!r}")
