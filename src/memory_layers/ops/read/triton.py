"""READ on a GPU in Triton: fp32, bf16 and fp16, fp32 sums, any width, 64-bit addresses.

The gathers are token-major and bound by memory: a program reads tiles of rows, each thread 16
bytes at a time, several rows in flight. Block sizes follow from J, V and the types alone, so that
the result of a token does not depend on the tokens beside it and nothing is tuned at run time.
Slots outside the table read as zeros. The host never waits. Next: ops/_triton/rows.py.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from memory_layers.ops._triton.rows import (
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
    table_ptr, slots_ptr, weights_ptr, out_ptr, num_rows, row_stride, width, reads,
    BLOCK_J: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
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
    table_ptr, slots_ptr, x_ptr, out_ptr, num_rows, row_stride, x_stride, width, reads,
    BLOCK_J: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
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
    places = torch.arange(slots.numel(), device=slots.device)
    slots = slots.long().flatten()
    # Slots outside the table become N: dense_sums leaves them out.
    slots = torch.where((slots >= 0) & (slots < num_rows), slots, num_rows)
    return dense_sums(((slots << 32) | places).sort().values, weights, x, num_rows)
