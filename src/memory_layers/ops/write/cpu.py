"""WRITE on the CPU in Numba: one pass that sums each touched row's gradient and updates the row.

The gradient of a row lives in one buffer of V numbers a thread. No [R, V] tensor is made. While a
row is updated, the next one is fetched: rows are sorted, but far apart in memory.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numba import prange
from torch import Tensor

from memory_layers.ops.numba_adamw import adamw_row
from memory_layers.ops.numba_kernel import follow_torch_threads, helper, kernel
from memory_layers.ops.numba_rows import as_array, close_row, open_row
from memory_layers.ops.write.cpu_factors import (
    NO_ROW,
    Factors,
    next_row,
    prepare,
    start_of,
    sum_row,
)
from memory_layers.ops.write.entries import PLACE_BITS

FactorLists = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Tensor]


# Numba makes two versions of a parallel loop, with a signed and an unsigned index. Each kernel
# makes its own signed, so that what it calls is compiled once.


@helper
def _sum_chunk(chunk, factors, rows, out):  # noqa: ANN001, ANN202
    heads = start_of(factors, chunk)
    r = np.searchsorted(rows, factors.lows[chunk])
    row = next_row(factors, heads, chunk)
    while row != NO_ROW:
        sum_row(row, factors, heads, chunk, out[r])
        r += 1
        row = next_row(factors, heads, chunk)


@kernel
def _row_sums_kernel(factors, rows, out):  # noqa: ANN001, ANN202
    for index in prange(factors.lows.shape[0]):
        chunk = np.int64(index)
        _sum_chunk(chunk, factors, rows, out)


@helper
def _square_chunk(chunk, factors, width):  # noqa: ANN001, ANN202
    heads = start_of(factors, chunk)
    gradient = np.empty(width, np.float32)
    squares = 0.0
    row = next_row(factors, heads, chunk)
    while row != NO_ROW:
        sum_row(row, factors, heads, chunk, gradient)
        squares += np.float64(_mean_square(gradient)) * width
        row = next_row(factors, heads, chunk)
    return squares


@kernel
def _row_squares_kernel(factors, width, squares):  # noqa: ANN001, ANN202
    for index in prange(factors.lows.shape[0]):
        chunk = np.int64(index)
        squares[chunk] = _square_chunk(chunk, factors, width)


@helper
def _decay_row(value, row, decayed, decay_total):  # noqa: ANN001, ANN202
    if decayed.shape[0]:
        decay = np.float32(np.exp(decay_total - decayed[row]))
        decayed[row] = decay_total
        for v in range(value.shape[0]):
            value[v] *= decay


@helper
def _mean_square(gradient):  # noqa: ANN001, ANN202
    square = np.float32(0)
    for v in range(gradient.shape[0]):
        square += gradient[v] * gradient[v]
    return square / np.float32(gradient.shape[0])


@helper
def _adamw_row_small_state(value, gradient, first, second, numbers):  # noqa: ANN001, ANN202
    """One row with one second moment for all of it, or without a first moment."""
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
def _adamw_chunk(chunk, table, exp_avg, exp_avg_sq, factors, decayed, decay_total, numbers, seed):  # noqa: ANN001, ANN202
    width = table.shape[1]
    momentum = exp_avg.shape[0] > 0
    full = momentum and exp_avg_sq.shape[1] == width
    heads = start_of(factors, chunk)
    gradient, buffer = np.empty(width, np.float32), np.empty(width, np.float32)
    row = next_row(factors, heads, chunk)
    while row != NO_ROW:
        sum_row(row, factors, heads, chunk, gradient)
        value = open_row(table, row, buffer)
        _decay_row(value, row, decayed, decay_total)
        following = next_row(factors, heads, chunk)
        if full:
            near = row if following == NO_ROW else following
            upcoming = (table[near], exp_avg[near], exp_avg_sq[near])
            adamw_row(value, gradient, (exp_avg[row], exp_avg_sq[row]), upcoming, numbers)
        else:
            first = exp_avg[row] if momentum else exp_avg.reshape(-1)
            _adamw_row_small_state(value, gradient, first, exp_avg_sq[row], numbers)
        close_row(table, row, value, seed)
        row = following


@kernel
def _row_adamw_kernel(  # noqa: ANN202
    table,  # noqa: ANN001
    exp_avg,  # noqa: ANN001
    exp_avg_sq,  # noqa: ANN001
    factors,  # noqa: ANN001
    decayed,  # noqa: ANN001
    decay_total,  # noqa: ANN001
    numbers,  # noqa: ANN001
    seed,  # noqa: ANN001
):
    for index in prange(factors.lows.shape[0]):
        chunk = np.int64(index)
        _adamw_chunk(
            chunk, table, exp_avg, exp_avg_sq, factors, decayed, decay_total, numbers, seed
        )


@helper
def _sgd_chunk(chunk, table, factors, decayed, decay_total, lr, seed):  # noqa: ANN001, ANN202
    width = table.shape[1]
    heads = start_of(factors, chunk)
    gradient, buffer = np.empty(width, np.float32), np.empty(width, np.float32)
    row = next_row(factors, heads, chunk)
    while row != NO_ROW:
        sum_row(row, factors, heads, chunk, gradient)
        value = open_row(table, row, buffer)
        _decay_row(value, row, decayed, decay_total)
        for v in range(width):
            value[v] -= lr * gradient[v]
        close_row(table, row, value, seed)
        row = next_row(factors, heads, chunk)


@kernel
def _row_sgd_kernel(table, factors, decayed, decay_total, lr, seed):  # noqa: ANN001, ANN202
    for index in prange(factors.lows.shape[0]):
        chunk = np.int64(index)
        _sgd_chunk(chunk, table, factors, decayed, decay_total, lr, seed)


@helper
def _adagrad_chunk(chunk, table, square_sum, factors, decayed, decay_total, lr, eps, seed):  # noqa: ANN001, ANN202
    width = table.shape[1]
    rowwise = square_sum.shape[1] != width
    heads = start_of(factors, chunk)
    gradient, buffer = np.empty(width, np.float32), np.empty(width, np.float32)
    row = next_row(factors, heads, chunk)
    while row != NO_ROW:
        sum_row(row, factors, heads, chunk, gradient)
        value = open_row(table, row, buffer)
        _decay_row(value, row, decayed, decay_total)
        total = square_sum[row]
        if rowwise:
            total[0] += _mean_square(gradient)
        for v in range(width):
            if not rowwise:
                total[v] += gradient[v] * gradient[v]
            value[v] -= lr * gradient[v] / (np.sqrt(total[0 if rowwise else v]) + eps)
        close_row(table, row, value, seed)
        row = next_row(factors, heads, chunk)


@kernel
def _row_adagrad_kernel(  # noqa: ANN202
    table,  # noqa: ANN001
    square_sum,  # noqa: ANN001
    factors,  # noqa: ANN001
    decayed,  # noqa: ANN001
    decay_total,  # noqa: ANN001
    lr,  # noqa: ANN001
    eps,  # noqa: ANN001
    seed,  # noqa: ANN001
):
    for index in prange(factors.lows.shape[0]):
        chunk = np.int64(index)
        _adagrad_chunk(chunk, table, square_sum, factors, decayed, decay_total, lr, eps, seed)


@helper
def _copy_chunk(chunk, table, master, factors):  # noqa: ANN001, ANN202
    heads = start_of(factors, chunk)
    nothing = np.empty(0, np.float32)
    row = next_row(factors, heads, chunk)
    while row != NO_ROW:
        close_row(table, row, master[row], -1)
        sum_row(row, factors, heads, chunk, nothing)
        row = next_row(factors, heads, chunk)


@kernel
def _copy_rows_kernel(table, master, factors):  # noqa: ANN001, ANN202
    for index in prange(factors.lows.shape[0]):
        chunk = np.int64(index)
        _copy_chunk(chunk, table, master, factors)


def row_sums(
    entries: Sequence[Tensor],
    weights: Sequence[Tensor],
    vectors: Sequence[Tensor],
    scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the distinct rows, rising, and scale * sum of weights[t, j] * vectors[t] of each."""
    follow_torch_threads()
    rows = torch.unique(torch.cat(list(entries)) >> PLACE_BITS)
    out = torch.empty(rows.shape[0], vectors[0].shape[1])
    factors, _alive = prepare(entries, weights, vectors, scale)
    _row_sums_kernel(factors, as_array(rows), as_array(out))
    return rows, out


def row_norm(
    entries: Sequence[Tensor],
    weights: Sequence[Tensor],
    vectors: Sequence[Tensor],
    scale: Tensor,
) -> Tensor:
    """Euclidean norm of all row sums together."""
    follow_torch_threads()
    factors, _alive = prepare(entries, weights, vectors, scale)
    squares = torch.empty(len(factors.lows), dtype=torch.float64)
    _row_squares_kernel(factors, vectors[0].shape[1], as_array(squares))
    return squares.sum().sqrt().float()


def row_adamw_(
    table: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    factors: FactorLists,
    decayed: Tensor,
    master: Tensor,
    *,
    decay_total: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    seed: int,
) -> None:
    """One AdamW step on the touched rows. An exp_avg without rows means no first moment."""
    follow_torch_threads()
    prepared, _alive = prepare(*factors)
    first_correction = 1 - beta1**step if exp_avg.shape[0] else 1.0
    correction = 1 / (1 - beta2**step)
    numbers = (lr / first_correction, beta1, 1 - beta1, beta2, 1 - beta2, correction, eps)
    _row_adamw_kernel(
        as_array(master if master.numel() else table),
        as_array(exp_avg),
        as_array(exp_avg_sq),
        prepared,
        as_array(decayed.flatten()),
        decay_total,
        tuple(np.float32(number) for number in numbers),
        seed,
    )
    _copy_rows(table, master, prepared)


def row_sgd_(
    table: Tensor,
    factors: FactorLists,
    decayed: Tensor,
    master: Tensor,
    *,
    decay_total: float,
    lr: float,
    seed: int,
) -> None:
    """One SGD step on the touched rows."""
    follow_torch_threads()
    prepared, _alive = prepare(*factors)
    target = as_array(master if master.numel() else table)
    decayed_rows = as_array(decayed.flatten())
    _row_sgd_kernel(target, prepared, decayed_rows, decay_total, np.float32(lr), seed)
    _copy_rows(table, master, prepared)


def row_adagrad_(
    table: Tensor,
    square_sum: Tensor,
    factors: FactorLists,
    decayed: Tensor,
    master: Tensor,
    *,
    decay_total: float,
    lr: float,
    eps: float,
    seed: int,
) -> None:
    """One Adagrad step on the touched rows."""
    follow_torch_threads()
    prepared, _alive = prepare(*factors)
    _row_adagrad_kernel(
        as_array(master if master.numel() else table),
        as_array(square_sum),
        prepared,
        as_array(decayed.flatten()),
        decay_total,
        np.float32(lr),
        np.float32(eps),
        seed,
    )
    _copy_rows(table, master, prepared)


def _copy_rows(table: Tensor, master: Tensor, prepared: Factors) -> None:
    if master.numel():
        _copy_rows_kernel(as_array(table), as_array(master), prepared)
