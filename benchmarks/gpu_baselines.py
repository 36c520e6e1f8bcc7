"""Table gradients on a GPU as peers make them, to be timed against ours, and for nothing else.

Written from the description in arXiv 2412.09764, section 3.2: a bag of J weighted rows a
token, and a dense [N, V] fp32 gradient of the table. Both ways use atomics, so the order of a sum
is left to chance and results differ between runs by rounding. Any V by masks, 64-bit addresses.
Slots outside the table are left out. The host never waits.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from memory_layers.ops._triton.rows import COMPILE, on_device_of, with_unit_stride

# Columns that a program adds atomically: 4 warps, 16 bytes of fp32 a thread.
ATOMIC_COLUMNS = 512
# Columns of a row that a program sums at a time: 8 warps, 16 bytes of fp32 a thread.
SUM_COLUMNS = 1024
# Entries of a row that a thread has in flight: 8 x 16 bytes, in 32 registers.
SUM_ENTRIES = 8
# Entries that a program counts or places: 4 warps, 4 a thread.
ENTRY_BLOCKS = {"BLOCK_E": 512, "num_warps": 4, **COMPILE}


@triton.jit
def atomic_backward_kernel(
    slots_ptr,
    weights_ptr,
    d_out_ptr,
    out_ptr,
    num_rows,
    d_out_stride,
    width,
    reads,
    BLOCK_V: tl.constexpr,
):
    blocks = tl.cdiv(width, BLOCK_V)
    token = (tl.program_id(0) // blocks).to(tl.int64)
    columns = (tl.program_id(0) % blocks) * BLOCK_V + tl.arange(0, BLOCK_V)
    vector = tl.load(d_out_ptr + token * d_out_stride + columns, columns < width, other=0)
    vector = vector.to(tl.float32)
    for j in range(0, reads):
        row = tl.load(slots_ptr + token * reads + j).to(tl.int64)
        weight = tl.load(weights_ptr + token * reads + j).to(tl.float32)
        inside = (row >= 0) & (row < num_rows)
        # A width of 0 masks every column: the interpreter cannot join a scalar to a mask.
        mask = columns < tl.where(inside, width, 0)
        tl.atomic_add(out_ptr + row * width + columns, weight * vector, mask, sem="relaxed")


@triton.jit
def count_entries_kernel(slots_ptr, counts_ptr, count, num_rows, BLOCK_E: tl.constexpr):
    e = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    rows = tl.load(slots_ptr + e, e < count, other=-1).to(tl.int64)
    inside = (rows >= 0) & (rows < num_rows)
    tl.atomic_add(counts_ptr + rows, 1, inside, sem="relaxed")


@triton.jit
def place_entries_kernel(
    slots_ptr, cursors_ptr, entries_ptr, count, num_rows, BLOCK_E: tl.constexpr
):
    """Write each entry where the cursor of its row stands; cursors end where their rows end."""
    e = tl.program_id(0).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    rows = tl.load(slots_ptr + e, e < count, other=-1).to(tl.int64)
    inside = (rows >= 0) & (rows < num_rows)
    places = tl.atomic_add(cursors_ptr + rows, 1, inside, sem="relaxed")
    tl.store(entries_ptr + places, e.to(tl.int32), inside)


@triton.jit
def reduce_rows_kernel(
    counts_ptr,
    ends_ptr,
    entries_ptr,
    weights_ptr,
    d_out_ptr,
    out_ptr,
    d_out_stride,
    width,
    BLOCK_E: tl.constexpr,
    BLOCK_V: tl.constexpr,
    READS: tl.constexpr,
):
    """Write the sum of one row, zeros where it has no entry."""
    row = tl.program_id(0).to(tl.int64)
    end = tl.load(ends_ptr + row)
    first = end - tl.load(counts_ptr + row)
    for start in range(0, width, BLOCK_V):
        columns = start + tl.arange(0, BLOCK_V)
        total = tl.zeros((BLOCK_V,), tl.float32)
        for at in range(first, end, BLOCK_E):
            e = at + tl.arange(0, BLOCK_E)
            entries = tl.load(entries_ptr + e, e < end, other=0)
            tokens = (entries.to(tl.uint32) // READS).to(tl.int64)
            weights = tl.load(weights_ptr + entries, e < end, other=0).to(tl.float32)
            vectors = tl.load(
                d_out_ptr + tokens[:, None] * d_out_stride + columns[None, :],
                (e < end)[:, None] & (columns < width)[None, :],
                other=0,
            )  # [BLOCK_E, BLOCK_V]
            total += tl.sum(weights[:, None] * vectors.to(tl.float32), 0)
        tl.store(out_ptr + row * width + columns, total, columns < width)


def column_blocks(width: int, most: int) -> dict[str, Any]:
    """Return block width and warps of a program that has `most` columns at a time, or fewer."""
    block = min(triton.next_power_of_2(width), most)
    return {"BLOCK_V": block, "num_warps": max(block // 128, 1), **COMPILE}


def reduce_blocks(reads: int, width: int) -> dict[str, Any]:
    """Return constants and warps of reduce_rows_kernel."""
    return {"BLOCK_E": SUM_ENTRIES, "READS": reads, **column_blocks(width, SUM_COLUMNS)}


def atomic_backward(slots: Tensor, weights: Tensor, d_out: Tensor, num_rows: int) -> Tensor:
    """Add every weights[t, j] * d_out[t] to row slots[t, j] of the gradient, atomically.

    Args:
        slots: [T, J] int32 or int64.
        weights: [T, J].
        d_out: [T, V].
        num_rows: N.

    Returns:
        [N, V] fp32.
    """
    (tokens, reads), width = slots.shape, d_out.shape[1]
    out = d_out.new_zeros(num_rows, width, dtype=torch.float32)
    if slots.numel() and out.numel():
        d_out, blocks = with_unit_stride(d_out), column_blocks(width, ATOMIC_COLUMNS)
        with on_device_of(out):
            atomic_backward_kernel[(tokens * triton.cdiv(width, blocks["BLOCK_V"]),)](
                slots.contiguous(), weights.contiguous(), d_out, out,
                num_rows, d_out.stride(0), width, reads, **blocks,
            )  # fmt: skip
    return out


def count_sort_reduce_backward(
    slots: Tensor, weights: Tensor, d_out: Tensor, num_rows: int
) -> Tensor:
    """Find out which entries read each row, then sum weights[t, j] * d_out[t] over them.

    An entry is one (t, j). They are sorted by row with a counter and a cursor a row.

    Args:
        slots: [T, J] int32 or int64.
        weights: [T, J].
        d_out: [T, V].
        num_rows: N.

    Returns:
        [N, V] fp32.

    Raises:
        ValueError: There are too many entries to count in 32 bits.
    """
    count, reads, width = slots.numel(), slots.shape[1], d_out.shape[1]
    if count >= 2**31 - ENTRY_BLOCKS["BLOCK_E"]:
        raise ValueError(f"a gradient may have at most 2^31 entries on a GPU, got {count}")
    if not (count and num_rows and width):
        return d_out.new_zeros(num_rows, width, dtype=torch.float32)
    slots, weights, d_out = slots.contiguous(), weights.contiguous(), with_unit_stride(d_out)
    out = d_out.new_empty(num_rows, width, dtype=torch.float32)
    counts = slots.new_zeros(num_rows, dtype=torch.int32)
    entries = slots.new_empty(count, dtype=torch.int32)
    grid = (triton.cdiv(count, ENTRY_BLOCKS["BLOCK_E"]),)
    with on_device_of(out):
        count_entries_kernel[grid](slots, counts, count, num_rows, **ENTRY_BLOCKS)
        cursors = counts.cumsum(0, dtype=torch.int32).sub_(counts)
        place_entries_kernel[grid](slots, cursors, entries, count, num_rows, **ENTRY_BLOCKS)
        reduce_rows_kernel[(num_rows,)](
            counts, cursors, entries, weights, d_out, out,
            d_out.stride(0), width, **reduce_blocks(reads, width),
        )  # fmt: skip
    return out
