"""Which implementation of an operation runs, decided from its inputs by a short chain."""

import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache, reduce
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

Impl = Literal["auto", "reference", "cpu", "triton"]
Chosen = Literal["reference", "cpu", "triton"]

CPU_DTYPES = (torch.float32, torch.bfloat16)
TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Slots a head that FIND in Triton can sort in registers.
TRITON_MAX_K = 128


def sum_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the type that sums of products of these are made in: fp32, or fp64 if one has it."""
    return reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)


def no_autocast(device_type: str) -> AbstractContextManager:
    """Switch autocast off for a block, at no cost where it is off."""
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return torch.autocast(device_type, enabled=False)


def kernels(folder: str, impl: str, op: str, *tensors: Tensor) -> ModuleType:
    """Import the chosen implementation of "find", "read" or "write": see choose.

    All modules of a folder define functions of the same names.
    """
    return _module(folder, choose(impl, op, *tensors))


@cache
def _module(folder: str, chosen: Chosen) -> ModuleType:
    return import_module(f"memory_layers.ops.{folder}.{chosen}")


def choose(impl: str, op: str, *tensors: Tensor) -> Chosen:
    """Choose the implementation of an operation.

    Args:
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.
        op: Name of the operation, for errors.
        *tensors: Every floating-point input that the kernel would read or write.

    Raises:
        ValueError: `impl` is unknown, or is named and does not support these inputs.
    """
    if impl == "reference":
        return "reference"
    if impl == "auto":
        kernel: Chosen = "cpu" if tensors[0].device.type == "cpu" else "triton"
        return "reference" if _problem(kernel, tensors) else kernel
    if impl not in ("cpu", "triton"):
        raise ValueError(f'impl must be "auto", "reference", "cpu" or "triton", got {impl!r}')
    if problem := _problem(impl, tensors):
        raise ValueError(f'{op} with impl="{impl}" {problem}')
    return "cpu" if impl == "cpu" else "triton"


def _problem(kernel: str, tensors: tuple[Tensor, ...]) -> str | None:
    """Say why a kernel does not support these inputs, None when it does."""
    kinds = tuple((tensor.device.type, tensor.dtype) for tensor in tensors)
    return _problem_of_kinds(kernel, kinds, _triton_interprets())


@cache
def _problem_of_kinds(
    kernel: str, kinds: tuple[tuple[str, torch.dtype], ...], interprets: bool
) -> str | None:
    devices = sorted({device for device, _ in kinds})
    allowed = CPU_DTYPES if kernel == "cpu" else TRITON_DTYPES
    refused = [dtype for _, dtype in kinds if dtype not in allowed]
    if kernel == "cpu" and devices != ["cpu"]:
        return f"needs tensors on the CPU, got {devices}"
    interpreted = devices == ["cpu"] and interprets
    if kernel == "triton" and devices != ["cuda"] and not interpreted:
        return f"needs tensors on a GPU, got {devices}"
    if refused:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        return f"supports {names}, got {refused[0]}"
    package = "numba" if kernel == "cpu" else "triton"
    if not _is_installed(package):
        return f"needs {package}, which is not installed. hint: pip install {package}"
    return None


def _triton_interprets() -> bool:
    # Triton's own switch: its kernels then run on CPU tensors, slowly, for tests.
    return os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def check_rows(name: str, rows: Tensor, num_rows: int) -> None:
    """Refuse row numbers outside the table: on the CPU always, on a GPU in torch's anomaly mode.

    On a GPU looking would make the host wait. Kernels there read rows outside the table as zeros
    and never write them.

    Args:
        name: Argument name for the error.
        rows: Row numbers of any shape, int32 or int64.
        num_rows: N.

    Raises:
        ValueError: A number is negative or not below N.
    """
    if rows.numel() == 0 or rows.device.type == "meta":
        return
    if rows.device.type != "cpu" and not torch.is_anomaly_enabled():
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
