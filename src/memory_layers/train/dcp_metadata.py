"""DCP's .metadata, which is a pickle: read without what it names being run, imported or reached.

Of whatever a pickle names, an object that only keeps what it is given takes the place. The metadata
are then built again of the plain values found in it, each of which is checked.
"""

import io
import pickle
import pickletools
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from memory_layers.common.checksums import is_inside

_DCP = "torch.distributed.checkpoint"
# Values in one another. Of a list or dictionary a thousand entries count as one.
_DEEPEST = 5_000
# What DCP has written since torch 2.11, on any system and version of Python.
_NAMES = {
    f"{_DCP}.metadata": {
        "Metadata", "TensorStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING",
        "ChunkStorageMetadata", "MetadataIndex", "StorageMeta",
    },
    f"{_DCP}.filesystem": {"_StorageInfo"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
    # So Python before 3.12 names a member of an enumeration.
    "builtins": {"getattr"},
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a tensor, or a part of one, is stored.

    Attributes:
        relative_path: Name of a file of the checkpoint.
        offset: Its first byte in that file.
        length: Its bytes.
        transform_descriptors: DCP's names of what the bytes went through.
    """

    relative_path: str
    offset: int
    length: int
    transform_descriptors: tuple[str, ...]


def parse_metadata(pickled: bytes, extensions: tuple[str, ...]) -> Metadata:
    """Return the metadata of a checkpoint that holds tensors alone.

    Args:
        pickled: The file's content.
        extensions: DCP's names of what the bytes of a tensor may have gone through.

    Returns:
        Of each tensor type, size and parts, and of each part its Place.

    Raises:
        ValueError: It is damaged, or names anything that the metadata of tensors do not need.
    """
    try:
        _check_depth(pickled)
        root = _fields(_Unpickler(io.BytesIO(pickled)).load(), "Metadata")
        places = {
            _index(key): _place(value, extensions) for key, value in root["storage_data"].items()
        }
        tensors = {
            _text(name): _tensor(name, value, places)
            for name, value in root["state_dict_metadata"].items()
        }
    except (
        AttributeError, TypeError, LookupError, EOFError, pickle.UnpicklingError, ImportError,
        OverflowError, MemoryError,
    ) as error:  # fmt: skip
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return Metadata({**tensors}, storage_data=places)


def _check_depth(pickled: bytes) -> None:
    """Refuse values in values without end: to hash such a key takes all the stack of a process."""
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[int, int] = {}
    for code, argument, _ in pickletools.genops(pickled):
        if code.name == "MARK":
            marks.append(len(stack))
        elif code.name == "POP" and marks and marks[-1] == len(stack):
            marks.pop()
        elif code.name == "MEMOIZE" or code.name.endswith("PUT"):
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif code.name.endswith("GET"):
            stack.append(memo[argument or 0])
        else:
            before = code.stack_before
            if pickletools.markobject in before:
                start = marks.pop() - before.index(pickletools.markobject)
            else:
                start = len(stack) - len(before)
            if start < 0:
                raise ValueError("it takes more values than it has")
            depth = max(stack[start:], default=-1) + 1
            if depth > _DEEPEST:
                raise ValueError(f"it holds more than {_DEEPEST:,} values in one another")
            stack[start:] = [depth] * len(code.stack_after)


class _Named:
    """Take the place of an object that a pickle names, and keep what that would be given."""

    def __init__(self, *given: object) -> None:
        self.state: object = given

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if name not in _NAMES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs")
        return type(name, (_Named,), {})


def _state(value: object, kind: str) -> Any:  # noqa: ANN401
    if not isinstance(value, _Named) or type(value).__name__ != kind:
        raise TypeError(f"expected a {kind}")
    return value.state


def _fields(value: object, kind: str) -> dict[str, Any]:
    fields = _state(value, kind)
    if not isinstance(fields, dict):
        raise TypeError(f"expected the fields of a {kind}")
    return fields


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a name, got a {type(value).__name__}")
    return value


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise TypeError("expected a number of 0 or more")
    return value


def _size(value: object) -> torch.Size:
    (numbers,) = _state(value, "Size")
    return torch.Size([_number(number) for number in numbers])


def _index(value: object) -> MetadataIndex:
    fields = _fields(value, "MetadataIndex")
    return MetadataIndex(_text(fields["fqn"]), _size(fields["offset"]))


def _place(value: object, extensions: tuple[str, ...]) -> Place:
    fields = _fields(value, "_StorageInfo")
    name, through = _text(fields["relative_path"]), fields.get("transform_descriptors") or ()
    if not is_inside(name) or "/" in name:
        raise ValueError(f"it names {name!r}, which is not a file of the checkpoint")
    if not all(extension in extensions for extension in through):
        raise ValueError(f"bytes went through {through}, expected {extensions} or nothing")
    return Place(name, _number(fields["offset"]), _number(fields["length"]), tuple(through))


def _tensor(name: str, value: object, places: dict[MetadataIndex, Place]) -> TensorStorageMetadata:
    fields = _fields(value, "TensorStorageMetadata")
    dtype, size = _state(fields["properties"], "TensorProperties")[0], _size(fields["size"])
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} has no type")
    chunks, stored = [], set()
    for part in fields["chunks"]:
        chunk = _fields(part, "ChunkStorageMetadata")
        offsets, sizes = _size(chunk["offsets"]), _size(chunk["sizes"])
        ends = [low + count for low, count in zip(offsets, sizes, strict=True)]
        if any(end > most for end, most in zip(ends, size, strict=True)):
            raise ValueError(f"{name} has a part outside of it")
        chunks.append(ChunkStorageMetadata(offsets, sizes))
        if prod(sizes):
            stored.add(offsets)
            if places[MetadataIndex(name, offsets)].length < prod(sizes) * dtype.itemsize:
                raise ValueError(f"{name} has a part that is too short")
    parts = [chunk for chunk in chunks if prod(chunk.sizes)]
    whole = sum(prod(part.sizes) for part in parts) == prod(size)
    if not whole or len(stored) < len(parts) or _overlap(parts):
        raise ValueError(f"{name} is not stored as a whole, or twice")
    return TensorStorageMetadata(TensorProperties(dtype=dtype), size, chunks)


def _overlap(parts: list[ChunkStorageMetadata]) -> bool:
    """Tell whether two parts of a tensor share numbers, so that others would be nowhere."""
    if len(parts) < 2:
        return False
    # Where most parts start at different places, few are open at a time.
    starts = zip(*(part.offsets for part in parts), strict=True)
    axis = max(enumerate(map(set, starts)), key=lambda different: len(different[1]))[0]
    opened: list[ChunkStorageMetadata] = []
    for part in sorted(parts, key=lambda part: part.offsets[axis]):
        opened = [other for other in opened if _reaches(other, part, axis)]
        axes = range(len(part.sizes))
        if any(all(_reaches(a, b, n) for n in axes for a, b in ((other, part), (part, other)))
               for other in opened):  # fmt: skip
            return True
        opened.append(part)
    return False


def _reaches(part: ChunkStorageMetadata, other: ChunkStorageMetadata, axis: int) -> bool:
    """Tell whether a part ends behind the start of another one."""
    return part.offsets[axis] + part.sizes[axis] > other.offsets[axis]
