"""Reading data files line by line, with errors that name file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from memory_layers.common.errors import UserError


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields number and text of the lines of a UTF-8 file that are not blank.

    Raises:
        UserError: if the file does not exist or is not UTF-8.
    """
    if not path.is_file():
        raise UserError.at(
            path,
            1,
            "there is no such file",
            expected="a file",
            got="a folder" if path.exists() else "nothing",
            hint="check the path",
        )
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                # Editors on Windows put a byte order mark before the first line.
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError.at(
                    path,
                    number,
                    f"the text is not valid UTF-8 ({error.reason} at byte {error.start + 1})",
                    expected="UTF-8",
                    got=repr(raw[error.start : error.end]),
                    hint="save the file as UTF-8",
                ) from error
            if line := line.strip():
                yield number, line


def parse_object(path: Path, number: int, line: str) -> dict[str, object]:
    """Parses one line of JSON that must be an object without repeated fields."""

    def no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
        parsed = dict(pairs)
        if len(parsed) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError.at(
                path,
                number,
                f"field {twice!r} stands more than once in an object",
                expected="each field once",
                got=shorten(line),
                hint="remove one of them",
            )
        return parsed

    try:
        parsed = json.loads(line, object_pairs_hook=no_repeats)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        # Numbers of thousands of digits and very deep nesting raise other errors than bad syntax.
        is_syntax = isinstance(error, json.JSONDecodeError)
        detail = f"{error.msg} at column {error.colno}" if is_syntax else str(error)
        raise UserError.at(
            path,
            number,
            f"the line is not valid JSON ({detail})",
            expected="one JSON object on one line",
            got=shorten(line),
            hint="check quotes, commas and braces, and put each object on a line of its own",
        ) from error
    if not isinstance(parsed, dict):
        raise UserError.at(
            path,
            number,
            "the line is not an object",
            expected="one JSON object a line",
            got=f"{_json_type(parsed)} {shorten(line)}",
            hint='write the line as {"field": "value", ...}',
        )
    return parsed


def text_field(path: Path, number: int, row: dict[str, object], name: str) -> str:
    """The field of a parsed line, which must be a string that is not blank."""
    if name not in row:
        got = f"the fields {', '.join(map(repr, row))}" if row else "an empty object"
        problem, hint = f"field {name!r} is missing", f"add {name!r} to the line"
        raise UserError.at(path, number, problem, expected=f"{name!r}", got=got, hint=hint)
    value = row[name]
    if not isinstance(value, str):
        raise UserError.at(
            path,
            number,
            f"field {name!r} is not a string",
            expected="a string",
            got=f"{_json_type(value)} {shorten(str(value))}",
            hint=f'put the value of {name!r} in quotes, such as "..."',
        )
    if not value.strip():
        raise UserError.at(
            path,
            number,
            f"field {name!r} is empty",
            expected="text",
            got=shorten(value),
            hint="fill it in, or remove the line",
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError.at(
            path,
            number,
            f"field {name!r} has half of a surrogate pair",
            expected="complete characters",
            got=ascii(value[error.start]),
            hint="write the character itself, or both halves of its \\u escape",
        ) from error
    return value


def empty_file(path: Path, expected: str) -> UserError:
    """The error for a file without content."""
    hint = "add some, or leave the file out"
    return UserError.at(path, 1, "the file is empty", expected=expected, got="nothing", hint=hint)


def shorten(text: str, width: int = 60) -> str:
    """The text in quotes, cut to a width that fits an error message."""
    return repr(text if len(text) <= width else text[: width - 3] + "...")


def _json_type(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", str: "a string"}
    return "null" if value is None else names.get(type(value), "a number")
