"""Folders that appear whole or not at all."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError


class CheckpointError(OSError):
    """A checkpoint or model folder that cannot be written or read. The others are intact."""


def write_folder(folder: Path, size: int, save: Callable[[Path], None]) -> None:
    """Write a folder that appears, or replaces an older one, only when complete.

    Args:
        folder: The final place.
        size: Bytes that it needs at least.
        save: Writes the content into the folder that it is given.

    Raises:
        CheckpointError: The disk is full or cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{folder.name}.part-*"):
            shutil.rmtree(left)
        require_space(folder.parent, size)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.part-", dir=folder.parent))
        try:
            save(part)
            publish(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    # torch reports a failed write of its zip file as RuntimeError.
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(not_written(folder, error)) from error


def not_written(folder: Path, reason: object) -> str:
    """Say that a folder could not be written, and what to do."""
    return (
        f"could not write {folder}: {reason}. Checkpoints written before are intact. "
        "hint: free disk space and run the same command again"
    )


def require_space(folder: Path, size: int) -> None:
    """Refuse to begin a write that cannot end.

    Raises:
        OSError: The disk of `folder` has less than `size` bytes free.
    """
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, f"{size / 2**20:.0f} MiB needed")


def publish(part: Path, folder: Path) -> None:
    """Bring a complete folder to the disk, and then to its final place.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    for file in part.rglob("*"):
        _sync(file)
    part.chmod(0o755)
    if not folder.exists():
        os.replace(part, folder)
    else:
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(folder, old)
        os.replace(part, folder)
        shutil.rmtree(old)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
