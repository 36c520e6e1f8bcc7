"""What the Numba kernels share: bf16 rows as 16-bit integers, rounding, addresses.

Numba has no bf16. A bf16 number is the upper half of an fp32 number, so a bf16 tensor is read as
uint16, shifted into fp32, and written back by rounding to the nearest even or stochastically.
"""

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from torch import Tensor

from memory_layers.ops.numba_kernel import helper


def as_array(tensor: Tensor) -> np.ndarray:
    """View a contiguous CPU tensor as a numpy array, bf16 as uint16, without a copy."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.detach().numpy()


@intrinsic
def as_float32(_context, number):  # noqa: ANN001, ANN201
    """Read an fp32 number as it is, and a uint16 as the bf16 number with these bits."""
    if number not in (types.float32, types.uint16):
        return None

    def codegen(_ctx, builder, _sig, args):  # noqa: ANN001, ANN202
        if number == types.float32:
            return args[0]
        wide = builder.zext(args[0], ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(32), 16)), ir.FloatType())

    return types.float32(number), codegen


@intrinsic
def float_bits(_context, number):  # noqa: ANN001, ANN201
    """Return the 32 bits of an fp32 number."""
    if number != types.float32:
        return None

    def codegen(_ctx, builder, _sig, args):  # noqa: ANN001, ANN202
        return builder.bitcast(args[0], ir.IntType(32))

    return types.uint32(number), codegen


@intrinsic
def pointer_to(_context, address, like):  # noqa: ANN001, ANN201
    """Turn an address into a pointer to numbers of the type of an array, for numba.carray."""

    def codegen(context, builder, sig, args):  # noqa: ANN001, ANN202
        return builder.inttoptr(args[0], context.get_value_type(sig.return_type))

    return types.CPointer(like.dtype)(types.int64, like), codegen


@helper
def hash32(number: int) -> int:
    """Mix 32 bits (the "lowbias32" finaliser of Chris Wellons), as in write/reference.py."""
    number = np.uint32(number)
    number = np.uint32((number ^ (number >> np.uint32(16))) * np.uint32(0x7FEB352D))
    number = np.uint32((number ^ (number >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(number ^ (number >> np.uint32(16)))


@helper
def row_hash(seed: int, row: int) -> int:
    """Start the random stream of one row for one update."""
    low = np.uint32(row & 0xFFFFFFFF)
    high = np.uint32((row >> 32) & 0xFFFFFFFF)
    return hash32(hash32(np.uint32(seed) ^ high) ^ low)


@helper
def nearest_bf16(number: float) -> int:
    """Round to the nearest bf16, ties to even. NaN stays NaN."""
    bits = float_bits(number)
    if number != number:
        return np.uint16(0x7FC0)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@helper
def stochastic_bf16(number: float, random: int) -> int:
    """Round up with the probability of the lost fraction, so that the mean is exact."""
    bits = float_bits(number)
    if number != number:
        return np.uint16(0x7FC0)
    if (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000):
        return np.uint16(bits >> np.uint32(16))
    return np.uint16(np.uint32(bits + (random & np.uint32(0xFFFF))) >> np.uint32(16))


def open_row(table: np.ndarray, row: int, buffer: np.ndarray) -> np.ndarray:
    """Return a row as fp32 numbers to work on: itself, or a copy of a bf16 row in the buffer."""


@overload(open_row)
def _open_row(table, row, buffer):  # noqa: ANN001, ANN202
    if table.dtype == types.float32:
        return lambda table, row, buffer: table[row]

    def read(table, row, buffer):  # noqa: ANN001, ANN202
        narrow = table[row]
        for v in range(buffer.shape[0]):
            buffer[v] = as_float32(narrow[v])
        return buffer

    return read


def close_row(table: np.ndarray, row: int, values: np.ndarray, seed: int) -> None:
    """Write what open_row gave back: rounded to bf16, stochastically when seed >= 0."""


@overload(close_row)
def _close_row(table, row, values, seed):  # noqa: ANN001, ANN202
    if table.dtype == types.float32:
        return lambda table, row, values, seed: None

    def write(table, row, values, seed):  # noqa: ANN001, ANN202
        narrow = table[row]
        if seed < 0:
            for v in range(values.shape[0]):
                narrow[v] = nearest_bf16(values[v])
            return
        start = row_hash(seed, row)
        for v in range(values.shape[0]):
            random = hash32(np.uint32(start + np.uint32(v) * np.uint32(0x9E3779B9)))
            narrow[v] = stochastic_bf16(values[v], random)

    return write
