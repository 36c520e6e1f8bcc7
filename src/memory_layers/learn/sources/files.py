"""Rows of files: JSON lines, CSV and Parquet, each with its place."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.common.packages import needs
from memory_layers.common.text_files import parse_json
from memory_layers.data.lines import empty_file, parse_object, read_lines, shorten
from memory_layers.data.text import documents_of

# A place, FILE:LINE, and the fields there.
Row = tuple[str, dict[str, Any]]

PACKED = (".gz", ".zst", ".bz2", ".xz", ".zip", ".7z", ".tar", ".tgz")
KINDS = (".jsonl", ".csv", ".tsv", ".parquet", ".txt")
# Fields of a table that hold lists. A cell has them as JSON.
LISTS = ("messages", "paraphrases", "aliases")


def file_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file.

    Args:
        path: .jsonl or .ndjson, .json with one object a line, .csv, .tsv, .parquet, or .txt, of
            which each document is a row with the field `text`.

    Raises:
        UserError: The file is missing, empty, of another kind or malformed. The error names the
            line.
        ImportError: It is a Parquet file and pyarrow is not installed.
    """
    suffix = path.suffix.lower()
    if suffix in PACKED:
        raise UserError(
            f"{path}:1: the file is compressed, expected one of {', '.join(KINDS)}, got "
            f"{suffix!r}. hint: unpack it first"
        )
    if suffix in (".jsonl", ".ndjson", ".json"):
        rows = _json_rows(path)
    elif suffix in (".csv", ".tsv"):
        rows = _csv_rows(path)
    elif suffix == ".parquet":
        rows = _parquet_rows(path)
    elif suffix == ".txt":
        rows = ((where, {"text": text}) for where, text in documents_of(path))
    else:
        raise UserError(
            f"{path}:1: this is not a kind of file that can be learned from, expected one of "
            f"{', '.join(KINDS)}, got {path.suffix or path.name!r}. hint: convert it"
        )
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise empty_file(path, "at least one row")


def _json_rows(path: Path) -> Iterator[Row]:
    for n, (where, line) in enumerate(read_lines(path)):
        if n == 0 and line.startswith("["):
            raise UserError(
                f"{where}: the file is one list, expected one JSON object a line, got "
                f"{shorten(line)}. hint: jq -c '.[]' {path.name} > {path.stem}-rows.jsonl"
            )
        yield where, parse_object(where, line)


def _csv_rows(path: Path) -> Iterator[Row]:
    head = ""
    # Says in which line the encoding is wrong.
    for _, line in read_lines(path):
        head = head or line
    # Programs in countries that write 0,5 separate by semicolons.
    separator = max(",;\t", key=head.count) if any(map(head.count, ",;\t")) else ","
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=separator, strict=True)
            names: list[str] | None = None
            before = 0
            try:
                for cells in reader:
                    # The line where a row begins: a cell can have several.
                    where, before = f"{path}:{before + 1}", reader.line_num
                    if not any(cell.strip() for cell in cells):
                        continue
                    if names is None:
                        names = _names(where, cells)
                    else:
                        yield where, _cells(where, names, cells)
            except csv.Error as error:
                raise UserError(
                    f"{path}:{before + 1}: the row is not valid CSV ({error}), expected cells "
                    f"separated by {separator!r}, got text that cannot be parsed. "
                    'hint: put a cell with quotes in quotes and double those inside: "a ""b"" c"'
                ) from error
    finally:
        csv.field_size_limit(limit)


def _names(where: str, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"{where}: column {twice[0]!r} stands more than once, expected each column once, got "
            f"{', '.join(names)}. hint: rename or remove one of them"
        )
    return names


def _cells(where: str, names: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(names):
        raise UserError(
            f"{where}: the row has {len(cells)} cells, expected {len(names)} "
            f"({', '.join(names)}), got {shorten(' | '.join(cells))}. "
            "hint: put cells with a separator inside in quotes"
        )
    row: dict[str, Any] = dict(zip(names, cells, strict=True))
    for name in LISTS:
        if row.get(name):
            try:
                row[name] = parse_json(row[name], f"{where}: column {name!r}")
            except UserError as error:
                raise UserError(
                    f"{error}, expected a list as JSON, got {shorten(row[name])}. hint: JSON lines "
                    "are easier for lists"
                ) from error
    for name in (*LISTS, "heldout", "group"):
        if row.get(name) == "":
            del row[name]
    if "heldout" in row:
        row["heldout"] = {"true": True, "1": True, "false": False, "0": False}.get(
            row["heldout"].strip().lower(), row["heldout"]
        )
    return row


def _parquet_rows(path: Path) -> Iterator[Row]:
    needs("pyarrow")
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}:{number}", row
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}:{number + 1}: the file cannot be read as Parquet ({error}), expected a "
            "Parquet file, got something else. hint: write it again"
        ) from error
