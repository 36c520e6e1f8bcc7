"""Nested fields of configurations: changed at any depth, or under names with dots."""

from collections.abc import Mapping
from typing import Any


def merge_fields(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested fields with some of them changed, to any depth."""
    merged = dict(base)
    for name, value in changes.items():
        old = merged.get(name)
        nested = isinstance(value, Mapping) and isinstance(old, Mapping)
        merged[name] = merge_fields(old, value) if nested else value
    return merged


def flat_fields(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested fields under names with dots."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_fields(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return the names of the nested fields, with dots, in which two configurations differ."""
    old, new = flat_fields(before), flat_fields(after)
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]
