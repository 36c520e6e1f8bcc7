"""Rows of Python objects: lists of mappings, pandas tables and `datasets`."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.data.facts import Fact, FactSet
from memory_layers.learn.sources.files import Row

_EXPECTED = (
    "a path, a list of rows (dicts), a FactSet, a pandas DataFrame, a datasets.Dataset, or a list "
    "of these"
)


def sources_of(data: Any) -> list[Any]:  # noqa: ANN401
    """Return the sources of what was given, one or several.

    Raises:
        UserError: It is nothing that can be read.
    """
    if isinstance(data, list | tuple) and data and not isinstance(data[0], Mapping | Fact):
        sources = list(data)
    else:
        sources = [data]
    for n, source in enumerate(sources):
        name = f"data[{n}]" if len(sources) > 1 else "data"
        if not (isinstance(source, str | Path | FactSet) or is_rows(source)):
            hint = ""
            if isinstance(source, Sequence) and source and isinstance(source[0], Fact):
                hint = ". hint: FactSet(facts, templates) says how they are worded"
            elif isinstance(source, Mapping):
                names = ", ".join(map(repr, list(source)[:4]))
                hint = f". hint: a list of rows, or one part of it, such as data[...] of {names}"
            raise UserError(f"{name} must be {_EXPECTED}, got {type(source).__name__}{hint}")
    return sources


def is_rows(source: Any) -> bool:  # noqa: ANN401
    """Tell whether an object is a table of rows in memory."""
    if isinstance(source, list | tuple):
        return all(isinstance(row, Mapping) for row in source)
    return _is_a(source, "pandas", "DataFrame") or _is_a(source, "datasets", "Dataset")


def object_rows(name: str, source: Any) -> Iterator[Row]:  # noqa: ANN401
    """Yield the rows of a table in memory.

    Args:
        name: What to call it. The place of a row is this name with its number, from 0.
        source: A list of mappings, a DataFrame or a Dataset.

    Raises:
        UserError: It has no row.
    """
    rows = source.to_dict("records") if _is_a(source, "pandas", "DataFrame") else source
    if len(rows) == 0:
        raise UserError(f"{name} is empty, expected at least one row")
    for n, row in enumerate(rows):
        yield f"{name}[{n}]", {str(key): _plain(value) for key, value in row.items()}


def _is_a(source: Any, module: str, name: str) -> bool:  # noqa: ANN401
    """Tell whether an object is of a class of a package that need not be installed."""
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(source, kind)


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return lists for arrays, Python's own numbers for numpy's, and None for a missing value."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    # Only a NaN differs from itself. pandas writes it for a missing text.
    return None if isinstance(value, float) and value != value else value
