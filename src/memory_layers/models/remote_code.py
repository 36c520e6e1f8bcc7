"""What a saved memory model has beside its weights: a format version and code that loads it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memory_layers.common.checks import check_whole
from memory_layers.common.errors import UserError
from memory_layers.common.files import write_file
from memory_layers.models.families import PARTS, Family

FORMAT_VERSION = 1
REMOTE_MODULE = "modeling_memory"
# Storage types of a table as files name them. None: that of the model.
VALUE_DTYPES = (None, "float32", "bfloat16")


def check_format(version: object, where: object = "this model") -> None:
    """Refuse a model written by a later version of this package.

    Args:
        version: Its `memory_format`.
        where: What has it, for errors.

    Raises:
        UserError: The version is above the one known here, or no version.
    """
    if type(version) is not int or version < 1:
        raise UserError(f"{where}: memory_format must be a version, got {version!r:.80}")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{where} has memory format {version}, this package reads up to {FORMAT_VERSION}. "
            "hint: pip install --upgrade memory-layers"
        )


def check_fields(config: Any) -> None:  # noqa: ANN401
    """Refuse a config whose fields of ours are not what add_memory makes.

    Raises:
        UserError: With the field.
    """
    check_format(config.memory_format)
    if config.memory is None and config.moe is None:
        raise UserError(
            "config.memory is None, and config.moe too. "
            "hint: build the plain model and call add_memory(model, ...)"
        )
    if config.memory is not None and config.moe is not None:
        raise UserError("config.memory and config.moe are both set. hint: remove one")
    for name in ("memory", "moe"):
        fields = getattr(config, name)
        if fields is not None and not isinstance(fields, Mapping):
            raise UserError(f"config.{name} must be fields and their values, got {fields!r:.80}")
    if config.value_dtype not in VALUE_DTYPES:
        raise UserError(
            f"config.value_dtype must be one of {VALUE_DTYPES}, got {config.value_dtype!r:.80}"
        )
    if config.written is not None:
        check_whole("config.written", config.written, 0, 2**31)


def write_remote_code(folder: Path, family: Family, classes: Mapping[str, type]) -> None:
    """Write the module by which Auto classes find ours, and its map into config.json.

    Args:
        folder: A folder that save_pretrained wrote.
        family: Of the model.
        classes: By their names in PARTS.
    """
    lines = [
        '"""Needs: pip install memory-layers."""',
        "",
        "from memory_layers.models.classes import memory_classes",
        "from memory_layers.models.families import Family",
        "",
        f"_classes = memory_classes({family!r})",
        *(f"{cls.__name__} = _classes.{part}" for part, cls in classes.items()),
    ]
    write_file(folder / f"{REMOTE_MODULE}.py", "\n".join(lines) + "\n")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["auto_map"] = {
        PARTS[part]: f"{REMOTE_MODULE}.{cls.__name__}" for part, cls in classes.items()
    }
    write_file(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
