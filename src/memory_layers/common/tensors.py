"""Tensors in safetensors files."""

from collections.abc import Mapping
from pathlib import Path

import torch
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


def is_finite(tensor: Tensor) -> bool:
    """Tell whether no number of a tensor is NaN or infinite. One without numbers is finite.

    Args:
        tensor: Of any type. Types of less than 16 bits are not looked at.
    """
    looked_at = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    if tensor.is_meta or not tensor.numel() or tensor.dtype not in looked_at:
        return True
    # A NaN is both the least and the largest. Makes no tensor of truth values.
    least, largest = torch.aminmax(tensor.detach())
    return bool(least.isfinite() & largest.isfinite())
