"""Which implementation of an operation runs, decided from its inputs by a short chain."""

from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Impl = Literal["auto", "reference", "cpu"]

KERNEL_DTYPES = (torch.float32, torch.bfloat16)


def use_cpu_kernel(impl: str, op: str, *tensors: Tensor) -> bool:
    """Decide between the Numba kernel (True) and the reference (False).

    Args:
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.
        op: Name of the operation, for errors.
        *tensors: Every floating-point input that the kernel would read or write.

    Raises:
        ValueError: `impl` is unknown, or is "cpu" and does not support these inputs.
    """
    if impl not in ("auto", "reference", "cpu"):
        raise ValueError(f'impl must be "auto", "reference" or "cpu", got {impl!r}')
    if impl == "reference":
        return False
    devices = sorted({tensor.device.type for tensor in tensors})
    dtypes = [tensor.dtype for tensor in tensors if tensor.dtype not in KERNEL_DTYPES]
    problem = None
    if devices != ["cpu"]:
        problem = f"needs tensors on the CPU, got {devices}"
    elif dtypes:
        problem = f"supports float32 and bfloat16, got {dtypes[0]}"
    elif not _has_numba():
        problem = "needs numba, which is not installed. hint: pip install numba"
    if problem and impl == "cpu":
        raise ValueError(f'{op} with impl="cpu" {problem}')
    return problem is None


@cache
def _has_numba() -> bool:
    return find_spec("numba") is not None


def check_rows(name: str, rows: Tensor, num_rows: int) -> None:
    """Refuse row numbers outside the table, on the CPU, where looking costs little.

    Args:
        name: Argument name for the error.
        rows: Row numbers of any shape, int32 or int64.
        num_rows: N.

    Raises:
        ValueError: A number is negative or not below N.
    """
    if rows.device.type != "cpu" or rows.numel() == 0:
        return
    low, high = (int(x) for x in torch.aminmax(rows))
    if low < 0 or high >= num_rows:
        raise ValueError(f"{name} must lie in [0, {num_rows}), got {low} to {high}")


def check_integer(name: str, rows: Tensor) -> None:
    """Refuse row numbers that are not int32 or int64."""
    if rows.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{name} must be int32 or int64, got {rows.dtype}")


def check_floating(**tensors: Tensor) -> None:
    """Refuse tensors that are not floating point, naming the argument."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")


def check_same_device(**tensors: Tensor) -> None:
    """Refuse a mix of devices, naming each argument's."""
    if len({tensor.device for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} on {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(f"all tensors must be on one device, got {found}")
