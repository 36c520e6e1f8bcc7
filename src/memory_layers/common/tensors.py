"""Tensors in safetensors files."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

# Numbers that are counted together: that takes a byte for each.
_AT_A_TIME = 2**24


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


def count_not_finite(tensor: Tensor) -> int:
    """Count the numbers of a tensor that are NaN or infinite.

    Args:
        tensor: Of any type. Types of less than 16 bits are not looked at.
    """
    looked_at = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if tensor.is_meta or not tensor.numel() or tensor.dtype not in looked_at:
        return 0
    tensor = tensor.detach()
    # A NaN is both the least and the largest. Makes no tensor of truth values.
    least, largest = tensor.aminmax()
    if least.isfinite() & largest.isfinite():
        return 0
    parts = tensor.reshape(-1).split(_AT_A_TIME)
    return sum(part.numel() - int(part.isfinite().sum()) for part in parts)
