"""WRITE on a GPU in Triton: fp32, bf16 and fp16 tables with fp32 state, any width.

One pass a step: a program sums the gradient of each row it owns in fp32, updates the row and
writes it. No gradient is stored, no number is added atomically, the host never waits. Long rows
are summed in chunks beforehand: see ops/_triton/rows.py. All threads of a program read a number of
a row, such as its weight decay, and one of them writes it, so a barrier stands between. The reads
of a gradient are joined first, which copies them if there are several.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from memory_layers.ops._triton.rows import (
    Walk,
    dense_sums,
    on_device_of,
    round_to,
    row_blocks,
    sum_row,
)
from memory_layers.ops.write.entries import PLACE_BITS, PLACE_MASK, Factors, merge
from memory_layers.ops.write.state import RowState, steps_ahead

# Columns of the norm that a program has in registers.
NORM_COLUMNS = 1024


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
def row_ahead(row, last_step_ptr, last_lr_ptr, step, share, beta1, beta2):
    """Return what a step of a row that is moved ahead needs: see row_step_ in api.py.

    Returns:
        The size of the step to take back, 0 before the first touch, the correction of the second
        moment then, and both betas to the power of the steps since.
    """
    last, rate = tl.load(last_step_ptr + row), tl.load(last_lr_ptr + row)
    log_1, log_2 = tl.log(beta1), tl.log(beta2)
    n, then = (step - last).to(tl.float32), tl.maximum(last, 1).to(tl.float32)
    correction = 1 / (1 - tl.exp(then * log_2))
    size = rate * share * tl.exp(n * (log_1 - log_2 / 2)) * tl.sqrt(correction)
    return tl.where(last > 0, size, 0.0), correction, tl.exp(n * log_1), tl.exp(n * log_2)


@triton.jit
def load_row(row, width, columns, table_ptr, master_ptr, MASTER: tl.constexpr):
    """Read a row in fp32, from its master copy if there is one."""
    pointer = table_ptr
    if MASTER:
        pointer = master_ptr
    return tl.load(pointer + row * width + columns, columns < width, other=0).to(tl.float32)


@triton.jit
def store_row(
    values, row, width, columns, table_ptr, master_ptr, seed, MASTER: tl.constexpr,
    STOCHASTIC: tl.constexpr,
):  # fmt: skip
    """Write fp32 numbers to a row of the table, and exactly to its master copy if there is one."""
    offsets = row * width + columns
    if MASTER:
        tl.store(master_ptr + offsets, values, columns < width)
    if STOCHASTIC:
        rounded = stochastic_bf16(values, row, columns, seed)
    else:
        rounded = round_to(values, table_ptr.dtype.element_ty)
    tl.store(table_ptr + offsets, rounded, columns < width)


@triton.jit
def sum_squares(
    first, row, entries_ptr, weights_ptr, vectors_ptr, partials_ptr, count, vector_stride,
    width, BLOCK_V: tl.constexpr, READS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Square a row's gradient, and add its blocks of columns up: [BLOCK_V]."""
    squares = tl.zeros((BLOCK_V,), tl.float32)
    for block in range(0, width, BLOCK_V):
        total = sum_row(
            first, row, entries_ptr, weights_ptr, vectors_ptr, partials_ptr, count, vector_stride,
            width, block + tl.arange(0, BLOCK_V), BLOCK_V, READS, CHUNK,
        )  # fmt: skip
        squares += total * total
    return squares


@triton.jit(do_not_specialize=["count"])
def row_squares_kernel(
    entries_ptr, weights_ptr, vectors_ptr, partials_ptr, count, vector_stride, width,
    out_ptr,
    BLOCK_V: tl.constexpr, READS: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Write the squared norm of the gradients of the rows that start in one tile of entries."""
    first = tl.program_id(0) * TILE
    before = tl.load(entries_ptr + first - 1, first > 0, other=-1) >> 32
    squares = tl.zeros((BLOCK_V,), tl.float32)
    for e in range(first, tl.minimum(first + TILE, count)):
        row = tl.load(entries_ptr + e) >> 32
        if (row != before) & (row >= 0):
            squares += sum_squares(
                e, row, entries_ptr, weights_ptr, vectors_ptr, partials_ptr, count,
                vector_stride, width, BLOCK_V, READS, CHUNK,
            )  # fmt: skip
        before = row
    tl.store(out_ptr + tl.program_id(0), tl.sum(squares))


@triton.jit(do_not_specialize=["count", "seed", "step"])
def row_step_kernel(
    entries_ptr, weights_ptr, vectors_ptr, partials_ptr, count, vector_stride, width,
    table_ptr, master_ptr, first_ptr, second_ptr, decayed_ptr, last_step_ptr, last_lr_ptr,
    decay_total_ptr, scale_ptr, num_rows,
    step_size, beta1, add_first, beta2, add_second, correction, eps, lr, share, step, seed,
    BLOCK_V: tl.constexpr, READS: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
    FIRST: tl.constexpr, SECOND: tl.constexpr, ROWWISE: tl.constexpr, DECAY: tl.constexpr,
    WIDE: tl.constexpr, MASTER: tl.constexpr, STOCHASTIC: tl.constexpr, AHEAD: tl.constexpr,
):  # fmt: skip
    """Step the rows that start in one tile of entries.

    first = keep_first * first + add_first * g
    second = keep_second * second + add_second * g * g
    row = decay * row - step_size * first / (sqrt(correction * second) + eps)

    This is AdamW, and without moments SGD. A row that is moved ahead has its own numbers.
    """
    keep_first, keep_second = beta1, beta2
    scale = tl.load(scale_ptr)
    begin = tl.program_id(0) * TILE
    before = tl.load(entries_ptr + begin - 1, begin > 0, other=-1) >> 32
    for e in range(begin, tl.minimum(begin + TILE, count)):
        row = tl.load(entries_ptr + e) >> 32
        if (row != before) & (row >= 0) & (row < num_rows):
            decay = row_decay(row, decayed_ptr, decay_total_ptr, DECAY)
            if AHEAD:
                size_then, correction_then, keep_first, keep_second = row_ahead(
                    row, last_step_ptr, last_lr_ptr, step, share, beta1, beta2
                )
            if ROWWISE:
                second = tl.load(second_ptr + row)
                if WIDE:
                    # The row does not fit in registers: its gradient is summed twice.
                    squares = sum_squares(
                        e, row, entries_ptr, weights_ptr, vectors_ptr, partials_ptr, count,
                        vector_stride, width, BLOCK_V, READS, CHUNK,
                    )  # fmt: skip
                    square = tl.sum(squares) * scale * scale / width
                    second = keep_second * second + add_second * square
            for start in range(0, width, BLOCK_V):
                columns = start + tl.arange(0, BLOCK_V)
                offsets = row * width + columns
                # What does not wait for the gradient is asked for before it.
                value = load_row(row, width, columns, table_ptr, master_ptr, MASTER)
                if FIRST:
                    first = tl.load(first_ptr + offsets, columns < width, other=0)
                if SECOND and not ROWWISE:
                    second = tl.load(second_ptr + offsets, columns < width, other=0)
                gradient = scale * sum_row(
                    e, row, entries_ptr, weights_ptr, vectors_ptr, partials_ptr, count,
                    vector_stride, width, columns, BLOCK_V, READS, CHUNK,
                )  # fmt: skip
                update = step_size * gradient
                if AHEAD:
                    back = size_then * first / (tl.sqrt(correction_then * second) + eps)
                    value += tl.where(size_then > 0, back, 0.0)
                value *= decay
                if FIRST:
                    first = keep_first * first + add_first * gradient
                    tl.store(first_ptr + offsets, first, columns < width)
                    update = step_size * first
                if SECOND:
                    if not ROWWISE:
                        second = keep_second * second + add_second * gradient * gradient
                        tl.store(second_ptr + offsets, second, columns < width)
                    elif not WIDE:
                        square = tl.sum(gradient * gradient) / width
                        second = keep_second * second + add_second * square
                    update /= tl.sqrt(correction * second) + eps
                store_row(
                    value - update, row, width, columns, table_ptr, master_ptr, seed,
                    MASTER, STOCHASTIC,
                )  # fmt: skip
            if ROWWISE or DECAY or AHEAD:
                # All warps have read the row's numbers before one of them writes.
                tl.debug_barrier()
            if ROWWISE:
                tl.store(second_ptr + row, second)
            if DECAY:
                tl.store(decayed_ptr + row, tl.load(decay_total_ptr))
            if AHEAD:
                tl.store(last_step_ptr + row, step)
                tl.store(last_lr_ptr + row, lr)
        before = row


def row_sums(factors: Factors) -> tuple[Tensor, Tensor]:
    """Return the distinct rows, rising, and scale * sum of weights[t, j] * vectors[t] of each.

    Waits for the GPU, to know how many rows there are.
    """
    entry, weight, vector = merge(*factors[:3])
    rows, rank = torch.unique_consecutive(entry >> PLACE_BITS, return_inverse=True)
    ranked = (rank << PLACE_BITS) | (entry & PLACE_MASK)
    return rows, dense_sums(ranked, weight, vector, rows.shape[0]).mul_(factors[3])


def norm_blocks(width: int) -> dict[str, Any]:
    """Choose columns and warps of the norm: it keeps no state of a row, so fewer than a step."""
    return row_blocks(min(width, NORM_COLUMNS))


def row_norm(factors: Factors) -> Tensor:
    """Euclidean norm of all row sums together, 0-dim."""
    entry, weight, vector = merge(*factors[:3])
    if not (entry.numel() and vector.numel()):
        return torch.zeros_like(factors[3])
    walk = Walk.over(entry, weight, vector)
    squares = factors[3].new_empty(walk.grid)
    constants = {**walk.constants, **norm_blocks(vector.shape[1])}
    with on_device_of(entry):
        row_squares_kernel[walk.grid](*walk.arguments, squares, **constants)
    return squares.double().sum().sqrt().float() * factors[3].abs()


def row_step_(
    table: Tensor,
    state: RowState,
    factors: Factors,
    *,
    lr: float,
    betas: Sequence[float],
    eps: float,
    seed: int | None,
) -> None:
    """Step the touched rows: by AdamW where there is a second moment, by SGD without."""
    entries, weights, vectors = merge(*factors[:3])
    if not entries.numel():
        return
    if not table.shape[1]:
        # A rank without columns keeps what there is one of for each row.
        rows = entries >> PLACE_BITS
        if state.decayed is not None:
            state.decayed[rows] = state.decay_total
        if state.last_step is not None and state.last_lr is not None:
            state.last_step[rows], state.last_lr[rows] = state.step, lr
        return
    absent, second, decayed = factors[-1].new_empty(0), state.exp_avg_sq, state.decayed
    # A float would reach the kernel in fp32, in which the decay of one step is lost.
    total = absent if decayed is None else decayed.new_full((), state.decay_total)
    walk = Walk.over(entries, weights, vectors)
    rest = (state.master, state.exp_avg, second, decayed, state.last_step, state.last_lr)
    share = 0.0 if state.last_step is None else steps_ahead(betas, state.step)
    with on_device_of(table):
        row_step_kernel[walk.grid](
            *walk.arguments,
            table, *(absent if tensor is None else tensor for tensor in rest), total, factors[-1],
            table.shape[0], *state.numbers(lr, betas, eps), lr, share, state.step,
            as_int32(-1 if seed is None else seed),
            **walk.constants,
            FIRST=state.exp_avg is not None,
            SECOND=second is not None,
            ROWWISE=second is not None and second.shape[1] != table.shape[1],
            WIDE=table.shape[1] > walk.constants["BLOCK_V"],
            DECAY=decayed is not None,
            MASTER=state.master is not None,
            STOCHASTIC=seed is not None,
            AHEAD=state.last_step is not None,
        )  # fmt: skip


def as_int32(number: int) -> int:
    """Keep the low 32 bits, so that every seed reaches the kernel as one type."""
    return (number + 2**31) % 2**32 - 2**31
