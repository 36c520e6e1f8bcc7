"""Tensors in safetensors files."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file of contiguous tensors.

    Args:
        tensors: By name.
        path: The file.
        metadata: Plain words for its header.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    try:
        save_file(dict(tensors), path, dict(metadata or {}))
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
