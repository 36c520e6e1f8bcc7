"""The checks that configurations share."""

import math
import os
import re

from memory_layers.common.errors import UserError

# Beyond these no tensor fits anywhere, and products of them still fit into 63 bits.
MOST_WIDE, MOST_WORDS, MOST_STEPS = 2**20, 2**24, 10**8 - 1
_LONGEST_NAME = 100  # bytes; names of seeds, sizes and parts of files come behind it
# Of devices on Windows, whatever stands behind a point.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
# Those of other systems, what shells replace, and what turns the direction of writing.
_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*$`\u202a-\u202e\u2066-\u2069]')


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


def check_folder_name(name: str, value: str) -> None:
    """Refuse what cannot be the name of a folder in another one, on any system.

    Args:
        name: Argument name for the error.
        value: What was given.

    Raises:
        UserError: It is a path, empty, too long, or has letters that a file system refuses.
    """
    # What begins so is hidden, or taken for a flag or a home.
    is_whole = value == value.strip() and not value.startswith((".", "-", "~"))
    is_whole = is_whole and not value.endswith(".")
    if (
        not is_whole or _NOT_IN_NAMES.search(value) or _DEVICES.fullmatch(value)
        or not 0 < len(value.encode("utf-8", "surrogatepass")) <= _LONGEST_NAME
        or any("\ud800" <= letter <= "\udfff" for letter in value)
    ):  # fmt: skip
        shown = repr(value if len(value) <= _LONGEST_NAME else f"{value[:20]}...")
        raise UserError(
            f"{name} must be the name of a folder, not a path, of at most {_LONGEST_NAME} bytes, "
            f"got {shown}. hint: letters, digits, - and _, such as my_run"
        )


def check_path(name: str, value: str) -> None:
    """Refuse what cannot be a path of a file or folder.

    Args:
        name: Argument name for the error.
        value: What was given.

    Raises:
        UserError: It is empty, or no file system takes it.
    """
    try:
        is_path = b"\0" not in os.fsencode(value) and value != ""
    except UnicodeEncodeError:
        is_path = False
    if not is_path:
        raise UserError(f"{name} must be a path, got {value!r}. hint: leave it out, or name one")
