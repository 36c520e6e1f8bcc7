"""What the Triton kernels share: sums over the entries of a row, without atomics.

An entry is one (token, j) of a read, packed into an int64: `row << 32 | place`, where
place = token * reads + j. Sorted, the entries of a row lie together. A row belongs to the program
in whose tile of entries it starts, which alone sums and writes it: the order of every sum follows
from the entries alone.

A row that very many tokens read would keep its program busy for long after the others. So the
list is cut into chunks of CHUNK entries, and a chunk that lies within one row is summed
beforehand, by a program of its own, into `partials` [E / CHUNK, V]. The owner of the row then
adds fewer than 2 * CHUNK entries and the partial sums between them. Chunks that hold more than
one row, nearly all where reads are spread, are left alone: their partial sums are never written
nor read.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Entries of a chunk: with J = 128 reads a token, the partial sums hold T * V / 2 numbers.
CHUNK = 256
# Entries whose rows a program owns.
TILE = 16
# Entries that a thread has in flight.
UNROLL = tl.constexpr(4)
# Columns that a program has in registers: 32 warps, the most there are, with 4 a thread.
MAX_BLOCK_V = 4096
# Options of every launch. Triton is about to change its default, and warns where none is set.
COMPILE = {"enable_fp_fusion": True}


def row_blocks(width: int) -> dict[str, Any]:
    """Return block width and warps of a program that owns whole rows.

    4 columns a thread make 16 bytes of fp32, in which state is kept. With more, loads of different
    types would be laid out differently, and pass through shared memory to meet.
    """
    block = min(triton.next_power_of_2(width), MAX_BLOCK_V)
    return {"BLOCK_V": block, "num_warps": max(block // 128, 1), **COMPILE}


def with_unit_stride(rows: Tensor) -> Tensor:
    """Return rows whose numbers lie side by side, copied only if they do not."""
    return rows if rows.stride(1) == 1 else rows.contiguous()


def on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Make the tensor's GPU the current one: Triton launches there."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@triton.jit
def round_to(values, dtype: tl.constexpr):
    """Round fp32 to the nearest number of a type: bf16 by hand, as the interpreter truncates."""
    if dtype == tl.bfloat16:
        bits = values.to(tl.uint32, bitcast=True)
        nearest = bits + 0x7FFF + ((bits >> 16) & 1)
        # What makes a NaN may lie in the bits that are cut off. This one stays.
        bits = tl.where(values == values, nearest, bits | 0x400000)
        rounded = (bits >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        rounded = values.to(dtype)
    return rounded


@triton.jit
def add_entries(
    total, first, end, row, entries_ptr, weights_ptr, vectors_ptr, vector_stride, columns,
    width, READS: tl.constexpr,
):  # fmt: skip
    """Add weight * vector of the entries from `first` that belong to the row, up to `end`."""
    e = first
    more = e < end
    while more:
        for _ in tl.static_range(UNROLL):
            entry = tl.load(entries_ptr + e, e < end, other=-1)
            more = (e < end) & ((entry >> 32) == row)
            place = entry & 0xFFFFFFFF
            source = (place.to(tl.uint32) // READS).to(tl.int64)
            weight = tl.load(weights_ptr + place, more, other=0).to(tl.float32)
            # A width of 0 masks every column: the interpreter cannot join a scalar to a mask.
            vector = tl.load(
                vectors_ptr + source * vector_stride + columns,
                columns < tl.where(more, width, 0),
                other=0,
            )
            total += weight * vector.to(tl.float32)
            e += 1
    return total


@triton.jit
def sum_row(
    first, row, entries_ptr, weights_ptr, vectors_ptr, partials_ptr, count, vector_stride,
    width, columns, BLOCK_V: tl.constexpr, READS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Sum weight * vector over all entries of the row, which start at `first`."""
    total = tl.zeros((BLOCK_V,), tl.float32)
    chunk = (first + CHUNK - 1) // CHUNK
    bound = tl.minimum(chunk * CHUNK, count)
    total = add_entries(
        total, first, bound, row, entries_ptr, weights_ptr, vectors_ptr, vector_stride,
        columns, width, READS,
    )  # fmt: skip
    more = (tl.load(entries_ptr + bound, bound < count, other=-1) >> 32) == row
    if more:
        while more:
            for _ in tl.static_range(2):
                last = chunk * CHUNK + CHUNK - 1
                # Chunks up to the last one within the row: more stays False after the first miss.
                more = (tl.load(entries_ptr + last, last < count, other=-1) >> 32) == row
                total += tl.load(
                    partials_ptr + chunk.to(tl.int64) * width + columns,
                    columns < tl.where(more, width, 0),
                    other=0,
                )
                chunk += more.to(tl.int32)
        total = add_entries(
            total, chunk * CHUNK, count, row, entries_ptr, weights_ptr, vectors_ptr,
            vector_stride, columns, width, READS,
        )  # fmt: skip
    return total


@triton.jit
def partial_sums_kernel(
    entries_ptr, weights_ptr, vectors_ptr, partials_ptr, vector_stride, width,
    BLOCK_V: tl.constexpr, READS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Sum one chunk, if it lies within one row."""
    first = tl.program_id(0) * CHUNK
    row = tl.load(entries_ptr + first) >> 32
    if (tl.load(entries_ptr + first + CHUNK - 1) >> 32) == row:
        for start in range(0, width, BLOCK_V):
            columns = start + tl.arange(0, BLOCK_V)
            total = tl.zeros((BLOCK_V,), tl.float32)
            total = add_entries(
                total, first, first + CHUNK, row, entries_ptr, weights_ptr, vectors_ptr,
                vector_stride, columns, width, READS,
            )  # fmt: skip
            place = tl.program_id(0).to(tl.int64) * width + columns
            tl.store(partials_ptr + place, total, columns < width)


@triton.jit(do_not_specialize=["count"])
def dense_sums_kernel(
    entries_ptr, weights_ptr, vectors_ptr, partials_ptr, count, vector_stride, width, out_ptr,
    num_rows, BLOCK_V: tl.constexpr, READS: tl.constexpr, TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Write the sums of the rows that start in one tile of entries."""
    first = tl.program_id(0) * TILE
    before = tl.load(entries_ptr + first - 1, first > 0, other=-1) >> 32
    for e in range(first, tl.minimum(first + TILE, count)):
        row = tl.load(entries_ptr + e) >> 32
        if (row != before) & (row >= 0) & (row < num_rows):
            for start in range(0, width, BLOCK_V):
                columns = start + tl.arange(0, BLOCK_V)
                total = sum_row(
                    e, row, entries_ptr, weights_ptr, vectors_ptr, partials_ptr, count,
                    vector_stride, width, columns, BLOCK_V, READS, CHUNK,
                )  # fmt: skip
                tl.store(out_ptr + row * width + columns, total, columns < width)
        before = row


class Walk(NamedTuple):
    """How a kernel walks over the rows of a gradient: grid, first arguments and constants."""

    grid: tuple[int]
    arguments: tuple[Tensor | int, ...]
    constants: dict[str, Any]

    @classmethod
    def over(cls, entries: Tensor, weights: Tensor, vectors: Tensor) -> "Walk":
        """Sum the chunks that lie within a row, and return what the rest of the work needs.

        Args:
            entries: [E] int64, sorted, E >= 1.
            weights: [S, J].
            vectors: [S, V], V >= 1.

        Raises:
            ValueError: There are too many entries to count in 32 bits.
        """
        weights, vectors = weights.contiguous(), with_unit_stride(vectors)
        count, width = entries.shape[0], vectors.shape[1]
        if count >= 2**31 - CHUNK:
            raise ValueError(f"a gradient may have at most 2^31 entries on a GPU, got {count}")
        partials = vectors.new_empty(count // CHUNK, width, dtype=torch.float32)
        factors = (entries, weights, vectors, partials)
        constants = {"READS": weights.shape[1], "CHUNK": CHUNK, **row_blocks(width)}
        if partials.numel():
            with on_device_of(entries):
                partial_sums_kernel[(count // CHUNK,)](
                    *factors, vectors.stride(0), width, **constants
                )
        return cls(
            (triton.cdiv(count, TILE),),
            (*factors, count, vectors.stride(0), width),
            {**constants, "TILE": TILE},
        )


def dense_sums(entries: Tensor, weights: Tensor, vectors: Tensor, num_rows: int) -> Tensor:
    """Sum weight * vector over the entries of each row.

    Args:
        entries: [E] int64, sorted. Rows outside [0, num_rows) are left out.
        weights: [S, J].
        vectors: [S, V].
        num_rows: N.

    Returns:
        [N, V] fp32, zeros where a row has no entry.
    """
    out = vectors.new_zeros(num_rows, vectors.shape[1], dtype=torch.float32)
    if entries.numel() and out.numel():
        walk = Walk.over(entries, weights, vectors)
        with on_device_of(out):
            dense_sums_kernel[walk.grid](*walk.arguments, out, num_rows, **walk.constants)
    return out
