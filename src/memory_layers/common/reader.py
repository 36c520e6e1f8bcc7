"""Dataclasses from YAML and other plain values, strictly: each error says where and what to do."""

import types
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from memory_layers.common.errors import UserError
from memory_layers.common.text import did_you_mean

Config = TypeVar("Config")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UserError: As read_yaml_values, or the file holds something else.
    """
    from memory_layers.common.yaml_files import read_yaml_values

    values = read_yaml_values(path)
    if not isinstance(values, dict):
        got = "an empty file" if values is None else type(values).__name__
        raise UserError(f"{path}: must hold `name:` and other fields, got {got}")
    return values


def from_dict(cls: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Build a nested dataclass from plain values.

    Args:
        cls: The dataclass.
        values: Field names and values. Missing fields take their defaults.
        where: Path of the field or file, for errors.

    Raises:
        UserError: A field is unknown (the closest name is given), missing, or of a wrong type.
    """
    hints = get_type_hints(cls)
    required = getattr(cls, "required", ())
    needed = {
        f.name: f.name in required or (f.default is MISSING and f.default_factory is MISSING)
        for f in fields(cls)  # ty: ignore[invalid-argument-type]
    }
    for name in values:
        if name not in needed:
            hint = getattr(cls, "removed", {}).get(name) or did_you_mean(name, needed)
            raise UserError(f"{where}: unknown field {name!r}. hint: {hint}")
    for name, is_needed in needed.items():
        if is_needed and name not in values:
            raise UserError(f"{where}: needs `{name}:`")
    converted = {k: _convert(hints[k], v, f"{where}: {k}") for k, v in values.items()}
    try:
        return cls(**converted)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def _convert(kind: Any, value: Any, where: str) -> Any:  # noqa: ANN401
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        inner = next(arg for arg in get_args(kind) if arg is not type(None))
        return _convert(inner, value, where)
    if is_dataclass(kind):
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: must be a mapping of fields, got {_shown(value)}")
        return from_dict(kind, value, where)
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise UserError(f"{where}: must be a list, got {_shown(value)}")
        return tuple(_convert(get_args(kind)[0], item, where) for item in items)
    if origin is dict:
        # Of any values: its reader knows more of them.
        kind = dict
    if origin is Literal:
        if value not in get_args(kind):
            allowed = list(get_args(kind))
            raise UserError(f"{where}: must be one of {allowed}, got {_shown(value)}")
        return value
    # YAML reads 1e-3 as text, because its numbers need a point.
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        hints = {str: ". hint: put it in quotes", bool: ". hint: true or false"}
        raise UserError(
            f"{where}: must be of type {kind.__name__}, got {_shown(value)}{hints.get(kind, '')}"
        )
    return value


def _shown(value: object) -> str:
    """Return a value for an error, on one line of some length."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
