"""What DCP writes and reads, on its way: a checksum behind each tensor, and finite numbers alone.

DCP calls a tensor, or the part of one that a rank holds, a slice of its file.
"""

import io
import zlib
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from torch import Tensor

# Not a public name of DCP, which takes extensions as arguments nevertheless.
from torch.distributed.checkpoint._extension import ExtensionRegistry, StreamTransformExtension
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.planner import ReadItem, WriteItem

from memory_layers.common.checksums import crc_of
from memory_layers.common.tensors import count_not_finite

_BYTES = 4


class Checksum(StreamTransformExtension):
    """Write the CRC-32 of a slice behind it, and compare it before the slice is read."""

    DESCRIPTOR = "memory_layers.crc32/1"

    @staticmethod
    def registry_name() -> str:
        """Return its name among the extensions of DCP."""
        return Checksum.DESCRIPTOR.partition("/")[0]

    @staticmethod
    def from_descriptor(version: str) -> "Checksum":
        """Return what reads this version, the only one."""
        del version
        return Checksum()

    def get_descriptor(self) -> str:
        """Return what DCP notes in the metadata of each slice."""
        return self.DESCRIPTOR

    @staticmethod
    def registry() -> ExtensionRegistry:
        """Return this extension for a reader of DCP."""
        extensions = ExtensionRegistry()
        extensions.register(Checksum)
        return extensions

    def transform_to(self, output: IO[bytes]) -> IO[bytes]:
        """Return a stream that writes to `output`, and the checksum when it is closed."""
        return cast("IO[bytes]", _Summing(output))

    def transform_from(self, input: IO[bytes]) -> IO[bytes]:
        """Return `input` if it is what was written.

        Raises:
            ValueError: It is not.
        """
        input.seek(0, io.SEEK_END)
        size = input.tell()
        input.seek(0)
        actual = crc_of(input, size - _BYTES)
        if actual.to_bytes(_BYTES, "little") != input.read(_BYTES):
            raise ValueError("a checksum differs, the file is not what was written")
        input.seek(0)
        # torch finds the end of its data in front of the checksum.
        return input


class _Summing:
    """Pass on what is written, and write its checksum at the end."""

    def __init__(self, output: IO[bytes]) -> None:
        self._output, self._crc = output, 0

    def write(self, data: bytes) -> int:
        self._crc = zlib.crc32(data, self._crc)
        return self._output.write(data)

    def flush(self) -> None:
        self._output.flush()

    def close(self) -> None:
        self._output.write(self._crc.to_bytes(_BYTES, "little"))
        self._output.close()


def sums_of_slices(folder: Path, places: Iterable[Any]) -> dict[str, str]:
    """Return the CRC-32 of the checksums in each file, in hexadecimal, by its name.

    It tells the file of one save from that of another, whose slices are whole too.

    Args:
        folder: The checkpoint.
        places: Where each slice is, as the metadata of DCP have it.

    Raises:
        OSError: A file cannot be read.
    """
    ends = sorted((place.relative_path, place.offset + place.length) for place in places)
    sums = {}
    for name, slices in groupby(ends, itemgetter(0)):
        crc = 0
        with (folder / name).open("rb") as file:
            for _, end in slices:
                file.seek(max(0, end - _BYTES))
                crc = zlib.crc32(file.read(_BYTES), crc)
        sums[name] = f"{crc:08x}"
    return sums


class FiniteSavePlanner(DefaultSavePlanner):
    """Refuse to save numbers that are not finite. Fails on all ranks if it does on one."""

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        """Return what is to be written.

        Raises:
            FloatingPointError: It has NaN or infinite numbers.
        """
        data = super().resolve_data(write_item)
        if isinstance(data, Tensor) and (count := count_not_finite(data)):
            raise FloatingPointError(f"{write_item.index.fqn} has {_said(count)}")
        return data


class FiniteLoadPlanner(DefaultLoadPlanner):
    """Load tensors by name, and refuse numbers that are not finite."""

    def __init__(self) -> None:
        # Nothing is nested here, and a DTensor is one entry.
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> NoReturn:
        """Refuse what is not a tensor: DCP would unpickle it."""
        del value
        raise ValueError(f"{read_item.dest_index.fqn} is not a tensor")

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Look at what has been read.

        Raises:
            FloatingPointError: It has NaN or infinite numbers.
        """
        if count := count_not_finite(tensor):
            raise FloatingPointError(f"{read_item.dest_index.fqn} has {_said(count)}")


def _said(count: int) -> str:
    return f"{count:,} numbers that are not finite"
