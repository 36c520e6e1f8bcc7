"""Read data files line by line, with errors that name the file and the line."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.common.text_files import whole_number

# Spaces without width, which str.strip leaves.
NO_WIDTH = "\u200b\u2060\ufeff"
_INK = re.compile(rf"[^\s{NO_WIDTH}]")


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the place, `FILE:NUMBER`, and the text of the lines that are not blank.

    Args:
        path: A file of UTF-8 text.

    Raises:
        UserError: The file does not exist, is not UTF-8, or has bytes that no text has.
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
            if "\0" in line:
                raise UserError(
                    f"{where}: byte {raw.index(0) + 1} of the line is NUL, expected text in UTF-8, "
                    "got another encoding or no text. hint: save the file as UTF-8"
                )
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
        if len(row := dict(pairs)) < len(pairs):
            ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise UserError(
                f"{where}: field {shorten(twice)} stands more than once in an object, expected "
                f"each field once, got {shorten(line)}. hint: remove one of them"
            )
        return row

    try:
        parsed = json.loads(
            line, object_pairs_hook=no_repeats, parse_int=partial(whole_number, where)
        )
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
        UserError: It is missing, no string, blank, has U+0000, or cannot be written as UTF-8.
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
    if is_blank(value):
        raise UserError(
            f"{where}: field {name!r} is empty, expected text, got {shorten(value)}. "
            "hint: fill it in, or remove the line"
        )
    check_complete(f"{where}: field {name!r}", value)
    if "\0" in value:
        raise UserError(
            f"{where}: field {name!r} has U+0000, expected text, got no character. hint: remove it"
        )
    return value


def text_list(where: str, row: dict[str, object], name: str) -> list[str]:
    """Return a field of a parsed line that is a list of texts. Without it, there are none.

    Args:
        where: Place of the line, for errors.
        row: The fields.
        name: Of the field.

    Raises:
        UserError: It is no list, or a text in it is blank or cannot be written as UTF-8.
    """
    listed = row.get(name)
    if listed is None:
        return []
    if not isinstance(listed, list):
        raise UserError(
            f"{where}: field {name!r} is not a list, expected a list of strings, got "
            f'{shorten(str(listed))}. hint: write it as ["...", "..."]'
        )
    return [text_field(where, {name: text}, name) for text in listed]


def is_blank(text: str) -> bool:
    """Tell whether there is nothing but white space, be it without width."""
    return _INK.search(text) is None


def has_blank(row: dict[str, Any], name: str) -> bool:
    """Tell whether a row has a field, with null or a blank text in it."""
    value = row.get(name)
    return name in row and (value is None or (isinstance(value, str) and is_blank(value)))


def check_complete(what: str, text: str) -> None:
    """Refuse a text that cannot be written as UTF-8.

    Args:
        what: The text, for the error.
        text: What it says.

    Raises:
        UserError: It has half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what} has half of a surrogate pair, expected complete characters, got "
            f"{text[error.start]!a}. "
            "hint: write the character itself, or both halves of its \\u escape, in UTF-8"
        ) from error


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
