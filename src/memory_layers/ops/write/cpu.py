"""WRITE on the CPU in Numba: one pass that sums each touched row's gradient and updates the row.

The gradient of a row lives in one buffer of V numbers a thread. No [R, V] tensor is made. While a
row is updated, the next one is fetched: rows are sorted, but far apart in memory.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numba import prange
from torch import Tensor

from memory_layers.ops._numba.compile import Kernel, follow_torch_threads, helper, inner_loops
from memory_layers.ops._numba.rows import as_array, close_row, open_row
from memory_layers.ops.write.cpu_factors import NO_ROW, next_row, prepare, start_of, sum_row
from memory_layers.ops.write.entries import PLACE_BITS, Factors
from memory_layers.ops.write.state import RowState, fading, steps_ahead

loops = inner_loops()


# Numba makes two versions of a parallel loop, with a signed and an unsigned index. Each kernel
# makes its own signed, so that what it calls is compiled once.


@helper
def _sum_chunk(chunk, factors, rows, out):
    heads = start_of(factors, chunk)
    r = np.searchsorted(rows, factors.lows[chunk])
    row = next_row(factors, heads, chunk)
    while row != NO_ROW:
        sum_row(row, factors, heads, chunk, out[r])
        r += 1
        row = next_row(factors, heads, chunk)


@Kernel
def _row_sums_kernel(factors, rows, out):
    for index in prange(factors.lows.shape[0]):
        chunk = np.int64(index)
        _sum_chunk(chunk, factors, rows, out)


@helper
def _square_chunk(chunk, factors, width):
    heads = start_of(factors, chunk)
    gradient = np.empty(width, np.float32)
    squares = 0.0
    row = next_row(factors, heads, chunk)
    while row != NO_ROW:
        sum_row(row, factors, heads, chunk, gradient)
        squares += np.float64(_mean_square(gradient)) * width
        row = next_row(factors, heads, chunk)
    return squares


@Kernel
def _row_squares_kernel(factors, width, squares):
    for index in prange(factors.lows.shape[0]):
        chunk = np.int64(index)
        squares[chunk] = _square_chunk(chunk, factors, width)


@helper
def _decay_row(value, row, decayed, decay_total):
    if decayed.shape[0]:
        decay = np.float32(np.exp(decay_total - decayed[row]))
        decayed[row] = decay_total
        for v in range(value.shape[0]):
            value[v] *= decay


@helper
def _mean_square(gradient):
    square = np.float32(0)
    for v in range(gradient.shape[0]):
        square += gradient[v] * gradient[v]
    return square / np.float32(gradient.shape[0])


@helper
def _step_row(value, gradient, first, second, numbers):
    """Step a row that has no first moment, or one number as the second."""
    step_size, beta1, rest1, beta2, rest2, second_correction, eps = numbers
    if second.shape[0] == 1:
        second[0] = beta2 * second[0] + rest2 * _mean_square(gradient)
    else:
        for v in range(second.shape[0]):
            second[v] = beta2 * second[v] + rest2 * gradient[v] * gradient[v]
    if first.shape[0]:
        for v in range(first.shape[0]):
            first[v] = beta1 * first[v] + rest1 * gradient[v]
            gradient[v] = first[v]
    if second.shape[0] == 1:
        factor = step_size / (np.sqrt(second[0] * second_correction) + eps)
        for v in range(value.shape[0]):
            value[v] -= factor * gradient[v]
    else:
        for v in range(value.shape[0]):
            value[v] -= step_size * gradient[v] / (np.sqrt(second[v] * second_correction) + eps)


@helper
def _take_back(value, row, moments, ahead, scalars, numbers):
    """Take back what the row was moved ahead by beyond this step, and return its numbers.

    Args:
        value: [V], of the table, changed in place.
        row: Its number.
        moments: Pair of [V].
        ahead: Last step and rate of each row, both without rows if rows are not moved ahead.
        scalars: Logarithms of both betas and of r, S(t) and t, fp64: see row_step_ in api.py.
        numbers: As for adamw_row.
    """
    (last_step, last_lr), (first, second) = ahead, moments
    log1, log2, log_r, share, step = scalars
    step_size, _, rest1, _, rest2, correction, eps = numbers
    n = step - last_step[row]
    if last_step[row] > 0:
        correction_then = 1 / (1 - np.exp(last_step[row] * log2))
        part = np.float32(last_lr[row] * np.exp(n * log_r) * share * np.sqrt(correction_then))
        correction_then = np.float32(correction_then)
        for v in range(value.shape[0]):
            value[v] += part * first[v] / (np.sqrt(second[v] * correction_then) + eps)
    keep1, keep2 = np.float32(np.exp(n * log1)), np.float32(np.exp(n * log2))
    return step_size, keep1, rest1, keep2, rest2, correction, eps


@helper
def _step_chunk(
    chunk, table, exp_avg, exp_avg_sq, factors, decay, ahead, scalars, numbers, seed, lr
):
    """Step the rows of a chunk. What has no rows is absent."""
    width, (decayed, decay_total), (last_step, last_lr) = table.shape[1], decay, ahead
    has_first, has_second = exp_avg.shape[0] > 0, exp_avg_sq.shape[0] > 0
    full = has_first and exp_avg_sq.shape[1] == width
    heads = start_of(factors, chunk)
    gradient, buffer = np.empty(width, np.float32), np.empty(width, np.float32)
    row = next_row(factors, heads, chunk)
    while row != NO_ROW:
        sum_row(row, factors, heads, chunk, gradient)
        value = open_row(table, row, buffer)
        own = numbers
        if last_step.shape[0]:
            own = _take_back(value, row, (exp_avg[row], exp_avg_sq[row]), ahead, scalars, numbers)
            last_step[row], last_lr[row] = np.int32(scalars[4]), lr
        _decay_row(value, row, decayed, decay_total)
        following = next_row(factors, heads, chunk)
        if full:
            near = row if following == NO_ROW else following
            upcoming = (table[near], exp_avg[near], exp_avg_sq[near])
            loops.adamw_row(value, gradient, (exp_avg[row], exp_avg_sq[row]), upcoming, own)
        elif has_second:
            first = exp_avg[row] if has_first else exp_avg.reshape(-1)
            _step_row(value, gradient, first, exp_avg_sq[row], numbers)
        else:
            for v in range(width):
                value[v] -= numbers[0] * gradient[v]
        close_row(table, row, value, seed)
        row = following


@Kernel
def _row_step_kernel(
    table, exp_avg, exp_avg_sq, factors, decay, ahead, scalars, numbers, seed, lr
):  # fmt: skip
    for index in prange(factors.lows.shape[0]):
        chunk = np.int64(index)
        _step_chunk(
            chunk, table, exp_avg, exp_avg_sq, factors, decay, ahead, scalars, numbers, seed, lr
        )  # fmt: skip


@helper
def _copy_chunk(chunk, table, master, factors):
    heads = start_of(factors, chunk)
    nothing = np.empty(0, np.float32)
    row = next_row(factors, heads, chunk)
    while row != NO_ROW:
        close_row(table, row, master[row], -1)
        sum_row(row, factors, heads, chunk, nothing)
        row = next_row(factors, heads, chunk)


@Kernel
def _copy_rows_kernel(table, master, factors):
    for index in prange(factors.lows.shape[0]):
        chunk = np.int64(index)
        _copy_chunk(chunk, table, master, factors)


def row_sums(factors: Factors) -> tuple[Tensor, Tensor]:
    """Return the distinct rows, rising, and scale * sum of weights[t, j] * vectors[t] of each."""
    follow_torch_threads()
    rows = torch.unique(torch.cat(list(factors[0])) >> PLACE_BITS)
    out = torch.empty(rows.shape[0], factors[2][0].shape[1])
    prepared, _alive = prepare(*factors)
    _row_sums_kernel(prepared, as_array(rows), as_array(out))
    return rows, out


def row_norm(factors: Factors) -> Tensor:
    """Euclidean norm of all row sums together."""
    follow_torch_threads()
    prepared, _alive = prepare(*factors)
    squares = torch.empty(len(prepared.lows), dtype=torch.float64)
    _row_squares_kernel(prepared, factors[2][0].shape[1], as_array(squares))
    return squares.sum().sqrt().float()


def _scalars(state: RowState, betas: Sequence[float]) -> tuple[float, ...]:
    """Return the numbers of a step that _take_back takes."""
    if state.last_step is None:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    # A beta of 0 fades at once.
    logarithms = (math.log(x) if x else -math.inf for x in (*betas, fading(betas)))
    return (*logarithms, steps_ahead(betas, state.step), float(state.step))


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
    follow_torch_threads()
    prepared, _alive = prepare(*factors)
    none = np.empty((0, 0), np.float32)
    never, nothing = np.empty(0, np.int32), np.empty(0, np.float32)
    _row_step_kernel(
        as_array(table if state.master is None else state.master),
        none if state.exp_avg is None else as_array(state.exp_avg),
        none if state.exp_avg_sq is None else as_array(state.exp_avg_sq),
        prepared,
        (np.empty(0) if state.decayed is None else as_array(state.decayed), state.decay_total),
        (
            never if state.last_step is None else as_array(state.last_step),
            nothing if state.last_lr is None else as_array(state.last_lr),
        ),
        _scalars(state, betas),
        tuple(np.float32(number) for number in state.numbers(lr, betas, eps)),
        -1 if seed is None else seed,
        np.float32(lr),
    )
    if state.master is not None:
        _copy_rows_kernel(as_array(table), as_array(state.master), prepared)
