"""Checksums of the files of a folder, which tell damage: checksums.json, written last.

A CRC-32 of each file is cheaper than reading it, and finds every single flipped bit. It keeps
nobody from writing other files with their own checksums.
"""

import json
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO

from memory_layers.common.files import write_json

CHECKSUMS = "checksums.json"

_CHUNK = 2**20


def write_checksums(folder: Path, files: Iterable[Path]) -> None:
    """Write checksums.json into a folder.

    Args:
        folder: A folder that is not complete yet.
        files: Files of it, at any depth.
    """
    write_json(folder / CHECKSUMS, {"crc32": checksums_of(folder, files)})


def checksums_of(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return the CRC-32 of files, in hexadecimal, by their paths in a folder."""
    found = {}
    for path in sorted(files):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = f"{crc_of(file):08x}"
    return found


def read_checksums(folder: Path) -> dict[str, str] | None:
    """Return the CRC-32 of files, in hexadecimal, by their paths in a folder. None: it has none.

    Raises:
        DamageError: checksums.json is damaged.
    """
    path = folder / CHECKSUMS
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))["crc32"]
        if not all(isinstance(value, str) and is_inside(name) for name, value in found.items()):
            raise ValueError("it names files outside of the folder")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamageError(path, error) from error
    return found


def check_files(folder: Path) -> dict[str, str] | None:
    """Compare the files of a folder with its checksums, and return those. None: it has none.

    Raises:
        DamageError: A file is missing, or is not what was written.
    """
    found = read_checksums(folder)
    for name, expected in (found or {}).items():
        path = folder / name
        if not path.is_file():
            raise DamageError(path, "it is missing")
        with path.open("rb") as file:
            if (actual := f"{crc_of(file):08x}") != expected:
                reason = f"its checksum is {actual}, {expected} was written"
                raise DamageError(path, reason, "is not what was written")
    return found


def crc_of(file: IO[bytes], size: int | None = None) -> int:
    """Return the CRC-32 of what is read from here on, of `size` bytes at most."""
    crc, left = 0, size
    while chunk := file.read(_CHUNK if left is None else min(_CHUNK, left)):
        crc = zlib.crc32(chunk, crc)
        left = None if left is None else left - len(chunk)
    return crc


def is_inside(name: object) -> bool:
    """Tell whether a name is a relative path that stays in its folder, on any system."""
    if not isinstance(name, str) or not name or "\\" in name or ":" in name or "\0" in name:
        return False
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


class DamageError(ValueError):
    """A file is not what was written.

    Args:
        path: The file.
        reason: What is wrong with it.
        what: What it means.
    """

    def __init__(self, path: Path, reason: object, what: str = "cannot be read") -> None:
        super().__init__(f"{path} {what}: {reason}")
        self.path, self.reason = path, reason
