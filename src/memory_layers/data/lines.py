"""Read data files line by line, with errors that name the file and the line."""

import json
from collections.abc import Iterator
from pathlib import Path

from memory_layers.common.errors import UserError


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the place, `FILE:NUMBER`, and the text of the lines that are not blank.

    Args:
        path: A file of UTF-8 text.

    Raises:
        UserError: The file does not exist or is not UTF-8.
    """
    if not path.is_file():
        got = "a folder" if path.exists() else "nothing"
        raise UserError(
            f"{path}:1: there is no such file, expected a file, got {got}. hint: check the path"
        )
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                # Editors on Windows put a byte order mark before the first line.
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{where}: the text is not valid UTF-8 ({error.reason} at byte "
                    f"{error.start + 1}), expected UTF-8, got {raw[error.start : error.end]!r}. "
                    "hint: save the file as UTF-8"
                ) from error
            if line:
                yield where, line


def parse_object(where: str, line: str) -> dict[str, object]:
    """Parse one line of JSON that must be an object without repeated fields.

    Args:
        where: Place of the line, for errors.
        line: The text.

    Raises:
        UserError: It is something else.
    """

    def no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in pairs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(
                f"{where}: field {twice[0]!r} stands more than once in an object, expected each "
                f"field once, got {shorten(line)}. hint: remove one of them"
            )
        return dict(pairs)

    try:
        parsed = json.loads(line, object_pairs_hook=no_repeats)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        # Numbers of thousands of digits and very deep nesting raise other errors than bad syntax.
        is_syntax = isinstance(error, json.JSONDecodeError)
        detail = f"{error.msg} at column {error.colno}" if is_syntax else str(error)
        raise UserError(
            f"{where}: the line is not valid JSON ({detail}), expected one JSON object on one "
            f"line, got {shorten(line)}. "
            "hint: check quotes, commas and braces, and put each object on a line of its own"
        ) from error
    if not isinstance(parsed, dict):
        raise UserError(
            f"{where}: the line is not an object, expected one JSON object a line, got "
            f"{_json_type(parsed)} {shorten(line)}. "
            'hint: write the line as {"field": "value", ...}'
        )
    return parsed


def text_field(where: str, row: dict[str, object], name: str) -> str:
    """Return a field of a parsed line.

    Args:
        where: Place of the line, for errors.
        row: The fields.
        name: Of the field.

    Raises:
        UserError: It is missing, no string, blank, or cannot be written as UTF-8.
    """
    if name not in row:
        got = f"the fields {', '.join(map(repr, row))}" if row else "an empty object"
        raise UserError(
            f"{where}: field {name!r} is missing, expected {name!r}, got {got}. "
            f"hint: add {name!r} to the line"
        )
    value = row[name]
    if not isinstance(value, str):
        raise UserError(
            f"{where}: field {name!r} is not a string, expected a string, got "
            f"{_json_type(value)} {shorten(str(value))}. "
            f'hint: put the value of {name!r} in quotes, such as "..."'
        )
    if not value.strip():
        raise UserError(
            f"{where}: field {name!r} is empty, expected text, got {shorten(value)}. "
            "hint: fill it in, or remove the line"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: field {name!r} has half of a surrogate pair, expected complete characters, "
            f"got {value[error.start]!a}. "
            "hint: write the character itself, or both halves of its \\u escape"
        ) from error
    return value


def empty_file(path: Path, expected: str) -> UserError:
    """Return the error of a file without content."""
    return UserError(
        f"{path}:1: the file is empty, expected {expected}, got nothing. "
        "hint: add some, or leave the file out"
    )


def shorten(text: str, width: int = 60) -> str:
    """Return a text in quotes, cut to a width that fits an error message."""
    return repr(text if len(text) <= width else text[: width - 3] + "...")


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", str: "a string"}
    return "null" if value is None else names.get(type(value), "a number")
