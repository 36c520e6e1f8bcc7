"""The two files of a memory without its base: memory.json and memory.safetensors."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from memory_layers.common.checksums import crc_of
from memory_layers.common.errors import UserError, placed
from memory_layers.common.files import json_bytes, replacing
from memory_layers.common.tensors import save_tensors
from memory_layers.common.text_files import parse_json
from memory_layers.common.untrusted import check_inside
from memory_layers.config import MemoryConfig
from memory_layers.models.fingerprint import is_fingerprint
from memory_layers.models.remote_code import FORMAT_VERSION, VALUE_DTYPES, check_format

WEIGHTS, DESCRIPTION = "memory.safetensors", "memory.json"
# Field of memory.json: the CRC-32 of memory.safetensors. Earlier versions have none.
CRC = "crc32"
# What else it must have.
_FIELDS: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "memory_format": lambda value: type(value) is int,
        "memory": lambda value: isinstance(value, dict),
        "target_module": lambda value: isinstance(value, str),
        "base": lambda value: isinstance(value, dict) and all(map(is_fingerprint, value.values())),
        "head": lambda value: value is None or is_fingerprint(value),
        "value_dtype": lambda value: value == "model" or value in VALUE_DTYPES,
    }
)
# Of memories of earlier versions.
_LEFT_OUT: Mapping[str, Any] = MappingProxyType({"value_dtype": None})


def read_description(path: Path) -> dict[str, Any]:
    """Read memory.json of this or an earlier version.

    Raises:
        FileNotFoundError: It is missing.
        UserError: It is damaged, or of a later version, or a file of its folder lies elsewhere.
    """
    check_inside(path.parent)
    try:
        with _reading(path):
            description = parse_json(path.read_text("utf-8"), str(path))
    except (UserError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged: {error}. hint: save the memory again") from error
    if not isinstance(description, dict):
        description = {}
    # A later version may have other fields.
    check_format(description.get("memory_format", FORMAT_VERSION), path)
    if "mlp" in description:
        description["target_module"] = description.pop("mlp")
    known = {**_LEFT_OUT, **description}
    wrong = [name for name, is_right in _FIELDS.items() if not is_right(known.get(name, ...))]
    if wrong:
        raise UserError(
            f"{path} is damaged, it lacks {', '.join(wrong)} as save_memory writes it. "
            "hint: save it again"
        )
    try:
        # Of an earlier version: the type of the tables was a field of it.
        MemoryConfig.from_dict({**description["memory"], "value_dtype": "model"})
    except UserError as error:
        raise placed(error, path) from error
    return description


def read_weights(folder: Path, crc: object = None) -> dict[str, Tensor]:
    """Read memory.safetensors.

    Args:
        folder: Where it is.
        crc: The CRC-32 that memory.json has of it. None: none.

    Raises:
        FileNotFoundError: It is missing.
        UserError: It is damaged.
    """
    path = folder / WEIGHTS
    try:
        with _reading(path):
            tensors = load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"{path} is damaged or cut off: {error}. hint: save the memory again"
        ) from error
    if crc is not None and crc != (found := _crc_of(path)):
        raise UserError(
            f"{path} is not as it was written: its CRC-32 is {found}, expected {crc}. "
            "hint: copy the folder again"
        )
    return tensors


def write_memory(
    folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write memory.json and memory.safetensors, both or neither.

    Args:
        folder: Made if it is missing.
        description: For memory.json. Of a patch, it has digests of the tensors.
        tensors: Contiguous.
    """
    files = folder / WEIGHTS, folder / DESCRIPTION
    with replacing(*files) as parts:
        save_tensors(tensors, parts[0], {"format": "pt"})
        crc = {} if "skeleton" in description else {CRC: _crc_of(parts[0])}
        parts[1].write_bytes(json_bytes({**description, **crc}))


@contextmanager
def _reading(path: Path) -> Generator[None]:
    """Refuse a file that is there and cannot be read."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path} cannot be read: {reason}. hint: it must be a file") from error


def _crc_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"{crc_of(file):08x}"
