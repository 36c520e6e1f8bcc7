"""What the steps of WRITE in Triton share: a row's weight decay, its reading and its rounding.

A program owns whole rows (ops/triton_rows.py). All its threads read a number of a row, such as
its weight decay, and one of them writes it, so a barrier stands between.
"""

import triton
import triton.language as tl

from memory_layers.ops.triton_rows import round_to


@triton.jit
def hash32(number):
    """Mix 32 bits (the "lowbias32" finaliser of Chris Wellons), as ops/write/reference.py does."""
    number = (number ^ (number >> 16)) * 0x7FEB352D
    number = (number ^ (number >> 15)) * 0x846CA68B
    return number ^ (number >> 16)


@triton.jit
def stochastic_bf16(values, row, columns, seed):
    """Round fp32 to bf16, up with the probability of the lost fraction.

    The random bits are those of the reference: a hash of (seed, row, column). Rows are below 2^31.
    """
    start = hash32(hash32(seed.to(tl.uint32, bitcast=True)) ^ row.to(tl.uint32))
    random = hash32(start + columns.to(tl.uint32) * 0x9E3779B9)
    bits = values.to(tl.uint32, bitcast=True)
    is_finite = (bits & 0x7F800000) != 0x7F800000
    # What makes a NaN may lie in the bits that are cut off. This one stays.
    is_nan = values != values
    bits = tl.where(is_finite, bits + (random & 0xFFFF), tl.where(is_nan, bits | 0x400000, bits))
    return (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def row_decay(row, decayed_ptr, decay_total_ptr, DECAY: tl.constexpr):
    """Return the factor of the weight decay that a row has missed."""
    decay = 1.0
    if DECAY:
        # fp64: the difference of two long sums.
        missed = tl.load(decay_total_ptr) - tl.load(decayed_ptr + row)
        decay = tl.exp(missed).to(tl.float32)
    return decay


@triton.jit
def load_row(row, width, columns, table_ptr, master_ptr, MASTER: tl.constexpr):
    """Read a row in fp32, from its master copy if there is one."""
    pointer = table_ptr
    if MASTER:
        pointer = master_ptr
    return tl.load(pointer + row * width + columns, columns < width, other=0).to(tl.float32)


@triton.jit
def store_row(
    values,
    row,
    width,
    columns,
    table_ptr,
    master_ptr,
    seed,
    MASTER: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):
    """Write fp32 numbers to a row of the table, and exactly to its master copy if there is one."""
    offsets = row * width + columns
    if MASTER:
        tl.store(master_ptr + offsets, values, columns < width)
    if STOCHASTIC:
        rounded = stochastic_bf16(values, row, columns, seed)
    else:
        rounded = round_to(values, table_ptr.dtype.element_ty)
    tl.store(table_ptr + offsets, rounded, columns < width)
