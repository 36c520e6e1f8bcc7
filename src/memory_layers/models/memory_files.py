"""The two files of a memory without its base: memory.json and memory.safetensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from memory_layers.common.errors import UserError
from memory_layers.common.files import json_bytes, replacing
from memory_layers.common.tensors import save_tensors
from memory_layers.common.text_files import parse_json
from memory_layers.common.untrusted import check_inside
from memory_layers.models.remote_code import FORMAT_VERSION, check_format

WEIGHTS, DESCRIPTION = "memory.safetensors", "memory.json"
_KEYS = ("memory_format", "memory", "target_module", "base", "head")


def read_description(path: Path) -> dict[str, Any]:
    """Read memory.json of this or an earlier version.

    Raises:
        FileNotFoundError: It is missing.
        UserError: It is damaged, or of a later version, or a file of its folder lies elsewhere.
    """
    check_inside(path.parent)
    try:
        description = parse_json(path.read_text("utf-8"), str(path))
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {error}. hint: save the memory again") from error
    if not isinstance(description, dict):
        description = {}
    # A later version may have other fields.
    check_format(description.get("memory_format", FORMAT_VERSION))
    if "mlp" in description:
        description["target_module"] = description.pop("mlp")
    missing = [key for key in _KEYS if key not in description]
    missing += [key for key in ("memory", "base") if not isinstance(description.get(key), dict)]
    if missing:
        raise UserError(
            f"{path} is damaged, it lacks {', '.join(dict.fromkeys(missing))}. hint: save it again"
        )
    return description


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read memory.safetensors.

    Raises:
        FileNotFoundError: It is missing.
        UserError: It is damaged.
    """
    try:
        return load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise UserError(
            f"{folder / WEIGHTS} is damaged or cut off: {error}. hint: save the memory again"
        ) from error


def write_memory(
    folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write memory.json and memory.safetensors, both or neither."""
    files = folder / WEIGHTS, folder / DESCRIPTION
    with replacing(*files) as parts:
        save_tensors(tensors, parts[0], {"format": "pt"})
        parts[1].write_bytes(json_bytes(description))
