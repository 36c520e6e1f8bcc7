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
        limit = "" if most == math.inf else f" and <= {most}"
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


def check_text(name: str, value: str) -> None:
    """Refuse what is no text, such as words of a command line that are not UTF-8.

    Args:
        name: Argument name for the error.
        value: What was given.

    Raises:
        UserError: It has halves of a surrogate pair, which stand for bytes, or NUL.
    """
    try:
        value.encode()
    except UnicodeEncodeError as error:
        place = error.start + 1
        raise UserError(
            f"{name} must be UTF-8 text, got {value[error.start : error.end]!r} as letter {place}. "
            "hint: check the encoding of the terminal or of the file it comes from"
        ) from error
    if "\0" in value:
        raise UserError(f"{name} must be text, got NUL. hint: take it out")
