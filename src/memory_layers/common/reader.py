"""Dataclasses from YAML and other plain values, strictly: each error says where and what to do."""

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from memory_layers.common.errors import UserError
from memory_layers.common.text import did_you_mean

Config = TypeVar("Config")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UserError: The file is missing, not YAML, or holds something else.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold `name:` and other fields, got {type(values).__name__}")
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
            raise UserError(f"{where}: must be a mapping of fields, got {value!r}")
        return from_dict(kind, value, where)
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise UserError(f"{where}: must be a list, got {value!r}")
        return tuple(_convert(get_args(kind)[0], item, where) for item in items)
    if origin is dict:
        # Of any values: its reader knows more of them.
        kind = dict
    if origin is Literal:
        if value not in get_args(kind):
            raise UserError(f"{where}: must be one of {list(get_args(kind))}, got {value!r}")
        return value
    # YAML reads 1e-3 as text, because its numbers need a point.
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{where}: must be of type {kind.__name__}, got {value!r}")
    return value
