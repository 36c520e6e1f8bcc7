"""Files of text and of JSON, read strictly: what is wrong is named with its line.

Next: yaml_files.py, the same for YAML.
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from memory_layers.common.errors import UserError

# Letters. Numbers that are longer do not fit into a float either.
LONGEST_NUMBER = 300


def read_text(path: Path) -> str:
    """Read a file of UTF-8 text, with or without a byte order mark.

    Raises:
        UserError: The file cannot be read, or is not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}:{line}: the text is not valid UTF-8 ({error.reason}), expected UTF-8, got "
            f"{raw[error.start : error.end]!r}. hint: save the file as UTF-8"
        ) from error


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Read a JSON file.

    Raises:
        UserError: As read_text and parse_json.
    """
    return parse_json(read_text(path), str(path))


def parse_json(text: str, where: str) -> Any:  # noqa: ANN401
    """Return the value of a JSON text, whose objects name each field once.

    Args:
        text: The content of a file.
        where: Its path, for errors.

    Raises:
        UserError: It is not JSON, names a field twice, or has numbers that are too long.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            name, first, second = _repeated(text)
            raise UserError(twice(f"{where}:{second}", name, first))
        return fields

    try:
        return json.loads(text, object_pairs_hook=once, parse_int=partial(whole_number, where))
    except json.JSONDecodeError as error:
        problem = f"{error.msg} at column {error.colno}"
        raise UserError(
            f"{where}:{error.lineno}: the text is not valid JSON ({problem})"
        ) from error
    except RecursionError as error:
        raise UserError(f"{where}: the text is not valid JSON (it is nested too deep)") from error


def whole_number(where: str, digits: str) -> int:
    """Return the value of a whole number in a JSON text.

    Args:
        where: Place of the text, for errors.
        digits: The number.

    Raises:
        UserError: It is longer than any computation takes.
    """
    if len(digits) > LONGEST_NUMBER:
        raise UserError(f"{where}: {long_number(digits)}")
    return int(digits)


def _repeated(text: str) -> tuple[str, int, int]:
    """Return the first field that a JSON text names twice in an object, with both lines."""
    objects: list[dict[str, int]] = []
    for found in re.finditer(r'("(?:[^"\\]|\\.)*")(\s*:)?|[{}]', text):
        if found[0] == "{":
            objects.append({})
        elif found[0] == "}":
            objects.pop()
        elif found[2]:
            name = json.loads(found[1])
            if name in objects[-1]:
                first, second = objects[-1][name], found.start()
                return name, text.count("\n", 0, first) + 1, text.count("\n", 0, second) + 1
            objects[-1][name] = found.start()
    raise AssertionError("each field stands once")


def twice(place: str, name: str, line: int) -> str:
    """Return the error for a name that a mapping has twice, at a place and before in a line."""
    return (
        f"{place}: {name!r} is already there, in line {line}, expected each name once, got "
        f"{name!r} again. hint: merge the two, or rename one of them"
    )


def long_number(digits: str) -> str:
    """Return the error for a number that no computation could take."""
    return (
        f"a number is too large, expected one below 1e{LONGEST_NUMBER}, got {digits[:40]}. "
        "hint: correct it, or put it in quotes if it is a text"
    )
