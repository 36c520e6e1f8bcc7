"""What the Numba kernels share: bf16 rows as 16-bit integers, and rounding.

Numba has no bf16. A bf16 number is the upper half of an fp32 number, so a bf16 tensor is read as
uint16, shifted into fp32, and written back by rounding to the nearest even or stochastically.
"""

import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from memory_layers.ops._numba.compile import helper


def as_array(tensor: Tensor) -> np.ndarray:
    """View a contiguous CPU tensor as a numpy array, bf16 as uint16, without a copy."""
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.uint16)
    return tensor.detach().numpy()


def as_float32(number):
    """Read an fp32 number as it is, and a uint16 as the bf16 number with these bits."""


@overload(as_float32)
def _as_float32(number):
    if number == types.float32:
        return lambda number: number
    return lambda number: np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)


@helper
def hash32(number):
    """Mix 32 bits (the "lowbias32" finaliser of Chris Wellons), as in write/reference.py."""
    number = np.uint32(number)
    number = np.uint32((number ^ (number >> np.uint32(16))) * np.uint32(0x7FEB352D))
    number = np.uint32((number ^ (number >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(number ^ (number >> np.uint32(16)))


@helper
def row_hash(seed, row):
    """Start the random stream of one row for one update."""
    low = np.uint32(row & 0xFFFFFFFF)
    high = np.uint32((row >> 32) & 0xFFFFFFFF)
    return hash32(hash32(np.uint32(seed) ^ high) ^ low)


@helper
def nearest_bf16(number):
    """Round to the nearest bf16, ties to even. NaN stays NaN."""
    bits = np.float32(number).view(np.uint32)
    if number != number:
        return np.uint16(0x7FC0)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@helper
def stochastic_bf16(number, random):
    """Round up with the probability of the lost fraction, so that the mean is exact."""
    bits = np.float32(number).view(np.uint32)
    if number != number:
        return np.uint16(0x7FC0)
    if (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000):
        return np.uint16(bits >> np.uint32(16))
    return np.uint16(np.uint32(bits + (random & np.uint32(0xFFFF))) >> np.uint32(16))


def open_row(table, row, buffer):
    """Return a row as fp32 numbers to work on: itself, or a copy of a bf16 row in the buffer."""


@overload(open_row)
def _open_row(table, row, buffer):
    if table.dtype == types.float32:
        return lambda table, row, buffer: table[row]

    def read(table, row, buffer):
        narrow = table[row]
        for v in range(buffer.shape[0]):
            buffer[v] = as_float32(narrow[v])
        return buffer

    return read


def close_row(table, row, values, seed):
    """Write what open_row gave back: rounded to bf16, stochastically when seed >= 0."""


@overload(close_row)
def _close_row(table, row, values, seed):
    if table.dtype == types.float32:
        return lambda table, row, values, seed: None

    def write(table, row, values, seed):
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
