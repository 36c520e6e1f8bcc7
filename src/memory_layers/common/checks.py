"""The checks that configurations share."""


def check_whole(name: str, value: object, least: int) -> None:
    """Refuse anything but a whole number of at least `least`.

    Args:
        name: Argument name for the error.
        value: What was given.
        least: The smallest number allowed.

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
