"""WRITE on the CPU in Numba: sort once, then one pass that sums each row and updates it.

The gradient of a row lives in one buffer of V numbers a thread. No [R, V] tensor is made.
"""

import math

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from memory_layers.ops.numba_rows import (
    FASTMATH,
    as_array,
    as_float32,
    follow_torch_threads,
    store_row,
)

# Rows that one thread takes at a time: enough to pay for its two buffers.
BLOCK_ROWS = 64
# Bits sorted in one pass of the radix sort: its counters fit in the first-level cache.
DIGIT_BITS = 11


@njit(cache=True)
def _radix_sort_kernel(slots, bits):  # noqa: ANN001, ANN202
    """Return sorted slots and the stable order, one counting pass a digit."""
    count = slots.shape[0]
    keys = slots.astype(np.int64)
    order = np.arange(count)
    other_keys = np.empty_like(keys)
    other_order = np.empty_like(order)
    mask = (1 << DIGIT_BITS) - 1
    for shift in range(0, bits, DIGIT_BITS):
        place = np.zeros((1 << DIGIT_BITS) + 1, np.int64)
        for e in range(count):
            place[((keys[e] >> shift) & mask) + 1] += 1
        for digit in range(1 << DIGIT_BITS):
            place[digit + 1] += place[digit]
        for e in range(count):
            digit = (keys[e] >> shift) & mask
            other_keys[place[digit]] = keys[e]
            other_order[place[digit]] = order[e]
            place[digit] += 1
        keys, other_keys = other_keys, keys
        order, other_order = other_order, order
    return keys, order


@njit(cache=True)
def _boundaries_kernel(keys):  # noqa: ANN001, ANN202
    """Return the distinct keys of a sorted array and where the group of each starts."""
    count = keys.shape[0]
    distinct = 0
    for e in range(count):
        distinct += e == 0 or keys[e] != keys[e - 1]
    rows = np.empty(distinct, np.int64)
    starts = np.empty(distinct + 1, np.int64)
    starts[distinct] = count
    r = 0
    for e in range(count):
        if e == 0 or keys[e] != keys[e - 1]:
            rows[r] = keys[e]
            starts[r] = e
            r += 1
    return rows, starts


@njit(fastmath=FASTMATH)
def _sum_row(r, starts, sources, weights, vectors, total):  # noqa: ANN001, ANN202
    total[:] = np.float32(0)
    for e in range(starts[r], starts[r + 1]):
        vector = vectors[sources[e]]
        weight = weights[e]
        for v in range(total.shape[0]):
            total[v] += weight * as_float32(vector[v])


@njit(parallel=True, cache=True, fastmath=FASTMATH)
def _row_sums_kernel(starts, sources, weights, vectors, out):  # noqa: ANN001, ANN202
    for r in prange(out.shape[0]):
        _sum_row(r, starts, sources, weights, vectors, out[r])


@njit(parallel=True, cache=True, fastmath=FASTMATH)
def _row_squares_kernel(starts, sources, weights, vectors):  # noqa: ANN001, ANN202
    rows = starts.shape[0] - 1
    blocks = (rows + BLOCK_ROWS - 1) // BLOCK_ROWS
    squares = np.zeros(blocks)
    for block in prange(blocks):
        gradient = np.empty(vectors.shape[1], np.float32)
        for r in range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, rows)):
            _sum_row(r, starts, sources, weights, vectors, gradient)
            square = np.float32(0)
            for v in range(gradient.shape[0]):
                square += gradient[v] * gradient[v]
            squares[block] += square
    return squares.sum()


@njit(fastmath=FASTMATH)
def _load_row(table, row, decay, out):  # noqa: ANN001, ANN202
    for v in range(out.shape[0]):
        out[v] = as_float32(table[row, v]) * decay


@njit(parallel=True, cache=True, fastmath=FASTMATH)
def _row_adamw_kernel(  # noqa: ANN202
    table,  # noqa: ANN001
    exp_avg,  # noqa: ANN001
    exp_avg_sq,  # noqa: ANN001
    rows,  # noqa: ANN001
    starts,  # noqa: ANN001
    sources,  # noqa: ANN001
    weights,  # noqa: ANN001
    vectors,  # noqa: ANN001
    row_decay,  # noqa: ANN001
    scale,  # noqa: ANN001
    step_size,  # noqa: ANN001
    beta1,  # noqa: ANN001
    beta2,  # noqa: ANN001
    second_correction,  # noqa: ANN001
    eps,  # noqa: ANN001
    seed,  # noqa: ANN001
):
    count, width = rows.shape[0], table.shape[1]
    rowwise = exp_avg_sq.shape[1] != width
    momentum = exp_avg.shape[0] > 0
    one = np.float32(1)
    for block in prange((count + BLOCK_ROWS - 1) // BLOCK_ROWS):
        gradient = np.empty(width, np.float32)
        value = np.empty(width, np.float32)
        for r in range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, count)):
            row = rows[r]
            _sum_row(r, starts, sources, weights, vectors, gradient)
            _load_row(table, row, row_decay[r] if row_decay.shape[0] else one, value)
            for v in range(width):
                gradient[v] *= scale
            second = exp_avg_sq[row]
            if rowwise:
                square = np.float32(0)
                for v in range(width):
                    square += gradient[v] * gradient[v]
                second[0] = beta2 * second[0] + (one - beta2) * square / np.float32(width)
            else:
                for v in range(width):
                    second[v] = beta2 * second[v] + (one - beta2) * gradient[v] * gradient[v]
            if momentum:
                first = exp_avg[row]
                for v in range(width):
                    first[v] = beta1 * first[v] + (one - beta1) * gradient[v]
                    gradient[v] = first[v]
            if rowwise:
                factor = step_size / (np.sqrt(second[0] * second_correction) + eps)
                for v in range(width):
                    value[v] -= factor * gradient[v]
            else:
                for v in range(width):
                    value[v] -= (
                        step_size * gradient[v] / (np.sqrt(second[v] * second_correction) + eps)
                    )
            store_row(table, row, value, seed)


@njit(parallel=True, cache=True, fastmath=FASTMATH)
def _row_sgd_kernel(  # noqa: ANN202
    table,  # noqa: ANN001
    rows,  # noqa: ANN001
    starts,  # noqa: ANN001
    sources,  # noqa: ANN001
    weights,  # noqa: ANN001
    vectors,  # noqa: ANN001
    row_decay,  # noqa: ANN001
    scale,  # noqa: ANN001
    lr,  # noqa: ANN001
    seed,  # noqa: ANN001
):
    count, width = rows.shape[0], table.shape[1]
    for block in prange((count + BLOCK_ROWS - 1) // BLOCK_ROWS):
        gradient = np.empty(width, np.float32)
        value = np.empty(width, np.float32)
        for r in range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, count)):
            decay = row_decay[r] if row_decay.shape[0] else np.float32(1)
            _sum_row(r, starts, sources, weights, vectors, gradient)
            _load_row(table, rows[r], decay, value)
            for v in range(width):
                value[v] -= lr * scale * gradient[v]
            store_row(table, rows[r], value, seed)


@njit(parallel=True, cache=True, fastmath=FASTMATH)
def _row_adagrad_kernel(  # noqa: ANN202
    table,  # noqa: ANN001
    square_sum,  # noqa: ANN001
    rows,  # noqa: ANN001
    starts,  # noqa: ANN001
    sources,  # noqa: ANN001
    weights,  # noqa: ANN001
    vectors,  # noqa: ANN001
    row_decay,  # noqa: ANN001
    scale,  # noqa: ANN001
    lr,  # noqa: ANN001
    eps,  # noqa: ANN001
    seed,  # noqa: ANN001
):
    count, width = rows.shape[0], table.shape[1]
    rowwise = square_sum.shape[1] != width
    for block in prange((count + BLOCK_ROWS - 1) // BLOCK_ROWS):
        gradient = np.empty(width, np.float32)
        value = np.empty(width, np.float32)
        for r in range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, count)):
            row = rows[r]
            decay = row_decay[r] if row_decay.shape[0] else np.float32(1)
            _sum_row(r, starts, sources, weights, vectors, gradient)
            _load_row(table, row, decay, value)
            total = square_sum[row]
            square = np.float32(0)
            for v in range(width):
                gradient[v] *= scale
                square += gradient[v] * gradient[v]
            if rowwise:
                total[0] += square / np.float32(width)
            for v in range(width):
                if not rowwise:
                    total[v] += gradient[v] * gradient[v]
                value[v] -= lr * gradient[v] / (np.sqrt(total[0 if rowwise else v]) + eps)
            store_row(table, row, value, seed)


@njit(parallel=True, cache=True)
def _store_rows_kernel(table, rows, source):  # noqa: ANN001, ANN202
    for r in prange(rows.shape[0]):
        store_row(table, rows[r], source[rows[r]], -1)


def group_by_row(slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort row numbers: the distinct rows, where each row's group starts, and the order."""
    highest = int(slots.max()) if slots.numel() else 0
    bits = max(1, highest.bit_length())
    keys, order = _radix_sort_kernel(as_array(slots.contiguous()), bits)
    rows, starts = _boundaries_kernel(keys)
    return torch.from_numpy(rows), torch.from_numpy(starts), torch.from_numpy(order)


def _factors(
    starts: Tensor, sources: Tensor, weights: Tensor, vectors: Tensor
) -> tuple[np.ndarray, ...]:
    follow_torch_threads()
    return (
        as_array(starts),
        as_array(sources),
        as_array(weights.float().contiguous()),
        as_array(vectors.contiguous()),
    )


def row_sums(starts: Tensor, sources: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
    """sums[r] = sum of weights[e] * vectors[sources[e]] over starts[r] <= e < starts[r + 1]."""
    out = torch.empty(starts.shape[0] - 1, vectors.shape[1])
    _row_sums_kernel(*_factors(starts, sources, weights, vectors), as_array(out))
    return out


def row_norm(starts: Tensor, sources: Tensor, weights: Tensor, vectors: Tensor) -> float:
    """Euclidean norm of all row sums together."""
    return math.sqrt(_row_squares_kernel(*_factors(starts, sources, weights, vectors)))


def row_adamw_(
    table: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    factors: tuple[Tensor, Tensor, Tensor, Tensor],
    row_decay: Tensor,
    *,
    scale: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    seed: int,
) -> None:
    """One AdamW step on the named rows. An exp_avg without rows means no first moment."""
    first_correction = 1 - beta1**step if exp_avg.shape[0] else 1.0
    _row_adamw_kernel(
        as_array(table),
        as_array(exp_avg),
        as_array(exp_avg_sq),
        as_array(rows),
        *_factors(*factors),
        as_array(row_decay),
        np.float32(scale),
        np.float32(lr / first_correction),
        np.float32(beta1),
        np.float32(beta2),
        np.float32(1 / (1 - beta2**step)),
        np.float32(eps),
        seed,
    )


def row_sgd_(
    table: Tensor,
    rows: Tensor,
    factors: tuple[Tensor, Tensor, Tensor, Tensor],
    row_decay: Tensor,
    *,
    scale: float,
    lr: float,
    seed: int,
) -> None:
    """One SGD step on the named rows."""
    _row_sgd_kernel(
        as_array(table),
        as_array(rows),
        *_factors(*factors),
        as_array(row_decay),
        np.float32(scale),
        np.float32(lr),
        seed,
    )


def row_adagrad_(
    table: Tensor,
    square_sum: Tensor,
    rows: Tensor,
    factors: tuple[Tensor, Tensor, Tensor, Tensor],
    row_decay: Tensor,
    *,
    scale: float,
    lr: float,
    eps: float,
    seed: int,
) -> None:
    """One Adagrad step on the named rows."""
    _row_adagrad_kernel(
        as_array(table),
        as_array(square_sum),
        as_array(rows),
        *_factors(*factors),
        as_array(row_decay),
        np.float32(scale),
        np.float32(lr),
        np.float32(eps),
        seed,
    )


def copy_rows_(table: Tensor, rows: Tensor, source: Tensor) -> None:
    """table[rows] = source[rows], to the nearest bf16 where the table is bf16."""
    follow_torch_threads()
    _store_rows_kernel(as_array(table), as_array(rows), as_array(source))
