"""READ on a GPU in Triton: fp32, bf16 and fp16, fp32 sums, any width, 64-bit addresses.

The gathers are token-major and bound by memory: a program reads tiles of rows, each thread 16
bytes at a time, several rows in flight. Block sizes follow from J, V and the types alone, so that
the result of a token does not depend on the tokens beside it and nothing is tuned at run time.
Slots outside the table read as zeros. The host never waits. Next: ops/triton_rows.py.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from memory_layers.ops.triton_rows import (
    COMPILE,
    dense_sums,
    on_device_of,
    round_to,
    with_unit_stride,
)

# Rows that a thread of gather_sum has in flight: 8 x 16 bytes, in 32 registers.
SUM_ROWS = 8
# Bytes of a row that a program of gather_sum reads: 4 warps, 16 bytes a thread.
SUM_BYTES = 2048
# A program of gather_dot is one warp. It reads 512 bytes of 8 rows at a time, 16 bytes a thread,
# and so needs no shared memory for the token's vector or for the sums.
DOT_ROWS = 8
DOT_BYTES = 512


@triton.jit
def gather_sum_kernel(
    table_ptr,
    slots_ptr,
    weights_ptr,
    out_ptr,
    num_rows,
    row_stride,
    width,
    reads,
    BLOCK_J: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    blocks = tl.cdiv(width, BLOCK_V)
    token = (tl.program_id(0) // blocks).to(tl.int64)
    columns = (tl.program_id(0) % blocks) * BLOCK_V + tl.arange(0, BLOCK_V)
    total = tl.zeros((BLOCK_V,), tl.float32)
    for start in range(0, reads, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        slots = tl.load(slots_ptr + token * reads + j, j < reads, other=-1).to(tl.int64)
        weights = tl.load(weights_ptr + token * reads + j, j < reads, other=0).to(tl.float32)
        inside = (slots >= 0) & (slots < num_rows)
        rows = tl.load(
            table_ptr + slots[:, None] * row_stride + columns[None, :],
            inside[:, None] & (columns < width)[None, :],
            other=0,
        )  # [BLOCK_J, BLOCK_V]
        # A thread holds the same columns of all rows of the tile: this sum stays in its registers.
        total += tl.sum(weights[:, None] * rows.to(tl.float32), 0)
    rounded = round_to(total, out_ptr.dtype.element_ty)
    tl.store(out_ptr + token * width + columns, rounded, columns < width)


@triton.jit
def gather_dot_kernel(
    table_ptr,
    slots_ptr,
    x_ptr,
    out_ptr,
    num_rows,
    row_stride,
    x_stride,
    width,
    reads,
    BLOCK_J: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    blocks = tl.cdiv(reads, BLOCK_J)
    token = (tl.program_id(0) // blocks).to(tl.int64)
    j = (tl.program_id(0) % blocks) * BLOCK_J + tl.arange(0, BLOCK_J)
    slots = tl.load(slots_ptr + token * reads + j, j < reads, other=-1).to(tl.int64)
    inside = (slots >= 0) & (slots < num_rows)
    products = tl.zeros((BLOCK_J, BLOCK_V), tl.float32)
    for start in range(0, width, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        vector = tl.load(x_ptr + token * x_stride + columns, columns < width, other=0)
        rows = tl.load(
            table_ptr + slots[:, None] * row_stride + columns[None, :],
            inside[:, None] & (columns < width)[None, :],
            other=0,
        )
        products += vector.to(tl.float32)[None, :] * rows.to(tl.float32)
    # One sum over the lanes of a warp, after all columns.
    tl.store(out_ptr + token * reads + j, tl.sum(products, 1), j < reads)


@triton.jit(do_not_specialize=["count"])
def gather_dot_by_row_kernel(
    table_ptr,
    entries_ptr,
    x_ptr,
    out_ptr,
    count,
    num_rows,
    row_stride,
    x_stride,
    width,
    reads,
    BLOCK_J: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    e = tl.program_id(0) * BLOCK_J + tl.arange(0, BLOCK_J)
    entries = tl.load(entries_ptr + e, e < count, other=0)
    slots = entries >> 32
    places = entries & 0xFFFFFFFF
    tokens = places // reads
    inside = slots < num_rows
    products = tl.zeros((BLOCK_J, BLOCK_V), tl.float32)
    for start in range(0, width, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        mask = inside[:, None] & (columns < width)[None, :]
        rows = tl.load(table_ptr + slots[:, None] * row_stride + columns[None, :], mask, other=0)
        vectors = tl.load(x_ptr + tokens[:, None] * x_stride + columns[None, :], mask, other=0)
        products += vectors.to(tl.float32) * rows.to(tl.float32)
    tl.store(out_ptr + places, tl.sum(products, 1), e < count)


def gather_sum(table: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    """out[t] = sum_j weights[t, j] * table[slots[t, j]]."""
    (tokens, reads), width = slots.shape, table.shape[1]
    out = table.new_empty(tokens, width, dtype=torch.promote_types(table.dtype, weights.dtype))
    table = with_unit_stride(table)
    if not slots.numel():
        return out.zero_()
    if out.numel():
        blocks = sum_blocks(reads, width, table.element_size())
        with on_device_of(table):
            gather_sum_kernel[(tokens * triton.cdiv(width, blocks["BLOCK_V"]),)](
                table, slots.contiguous(), weights.contiguous(), out,
                table.shape[0], table.stride(0), width, reads, **blocks,
            )  # fmt: skip
    return out


def sum_blocks(reads: int, width: int, item_bytes: int) -> dict[str, Any]:
    """Choose the rows, columns and warps of gather_sum_kernel, 16 bytes of a row a thread."""
    widest, warp = SUM_BYTES // item_bytes, 512 // item_bytes
    block = widest
    while block > warp and width % block:
        block //= 2
    if width % block:  # a width such as 96 or 1000: mask the rest of a block
        block = min(triton.next_power_of_2(width), widest)
    return {
        "BLOCK_J": min(triton.next_power_of_2(reads), SUM_ROWS),
        "BLOCK_V": block,
        "num_warps": max(1, block // warp),
        **COMPILE,
    }


def gather_dot(table: Tensor, slots: Tensor, x: Tensor) -> Tensor:
    """out[t, j] = table[slots[t, j]] . x[t]."""
    out = x.new_empty(slots.shape, dtype=torch.float32)
    (tokens, reads), width = slots.shape, table.shape[1]
    table, x = with_unit_stride(table), with_unit_stride(x)
    if out.numel():
        blocks = dot_blocks(reads, width, table.element_size())
        with on_device_of(table):
            gather_dot_kernel[(tokens * triton.cdiv(reads, blocks["BLOCK_J"]),)](
                table, slots.contiguous(), x, out,
                table.shape[0], table.stride(0), x.stride(0), width, reads, **blocks,
            )  # fmt: skip
    return out


def gather_dot_by_row(table: Tensor, slots: Tensor, x: Tensor) -> Tensor:
    """out[t, j] = table[slots[t, j]] . x[t], walking through the entries sorted by row.

    The entries of a row follow one another, so the row comes from memory once and from a cache
    after that. Where R rows are touched, R * V numbers of the table are read and not T * J * V.
    Against that stands a sort of T * J numbers, and that x is read once an entry: T * J * V
    numbers, from the second-level cache if x fits there. So it can win only where rows are read
    many times each (T * J much larger than R). Where that is has not been measured: gather_dot
    does not call it.
    """
    out = x.new_empty(slots.shape, dtype=torch.float32)
    reads, width = slots.shape[1], table.shape[1]
    table, x = with_unit_stride(table), with_unit_stride(x)
    if out.numel():
        entries = _sorted_entries(slots, table.shape[0])
        blocks = dot_blocks(entries.shape[0], width, table.element_size())
        with on_device_of(table):
            gather_dot_by_row_kernel[(triton.cdiv(entries.shape[0], blocks["BLOCK_J"]),)](
                table, entries, x, out, entries.shape[0],
                table.shape[0], table.stride(0), x.stride(0), width, reads, **blocks,
            )  # fmt: skip
    return out


def dot_blocks(pairs: int, width: int, item_bytes: int) -> dict[str, Any]:
    """Choose the rows, columns and warps of gather_dot_kernel, 16 bytes of a row a thread."""
    return {
        "BLOCK_J": min(triton.next_power_of_2(pairs), DOT_ROWS),
        "BLOCK_V": min(triton.next_power_of_2(width), DOT_BYTES // item_bytes),
        "num_warps": 1,
        **COMPILE,
    }


def scatter_sum(slots: Tensor, weights: Tensor, x: Tensor, num_rows: int) -> Tensor:
    """out[n] = sum of weights[t, j] * x[t] over all (t, j) with slots[t, j] = n.

    Sorted once, then each touched row is summed by one program in a fixed order and written once.
    """
    return dense_sums(_sorted_entries(slots, num_rows), weights, x, num_rows)


def _sorted_entries(slots: Tensor, num_rows: int) -> Tensor:
    """Pack row and place of each read into an int64, sorted; slots outside the table become N."""
    slots = slots.long().flatten()
    slots = torch.where((slots >= 0) & (slots < num_rows), slots, num_rows)
    return ((slots << 32) | torch.arange(slots.shape[0], device=slots.device)).sort().values
