"""READ on the CPU in Numba: fp32 and bf16 tables, fp32 sums, any width, 64-bit addresses."""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from memory_layers.ops.numba_kernel import follow_torch_threads, helper, kernel
from memory_layers.ops.numba_rows import as_array
from memory_layers.ops.numba_vectors import GROUP, add_group, add_one, dot_group, dot_one

# Fewer tokens than this are read in so many parts each, for threads that would have nothing to do.
# The number is fixed: sums must not depend on how many threads there are.
PARTS = 4
# Columns that one thread owns in scatter_sum: a cache line of fp32 and a vector register.
BLOCK_V = 16


@helper
def _sum_token(table, places, factors, first, reads, total):  # noqa: ANN001, ANN202
    for v in range(total.shape[0]):
        total[v] = np.float32(0)
    grouped = reads - reads % GROUP
    for j in range(0, grouped, GROUP):
        add_group(table, places, factors, total, first + j)
    for j in range(grouped, reads):
        add_one(table, places, factors, total, first + j)


@kernel
def _gather_sum_kernel(table, slots, weights, out):  # noqa: ANN001, ANN202
    reads, places, factors = slots.shape[1], slots.reshape(-1), weights.reshape(-1)
    for t in prange(slots.shape[0]):
        _sum_token(table, places, factors, t * reads, reads, out[t])


@helper
def _sum_part(table, slots, weights, n, sums):  # noqa: ANN001, ANN202
    reads, places, factors = slots.shape[1], slots.reshape(-1), weights.reshape(-1)
    t, part = n // PARTS, n % PARTS
    low, high = reads * part // PARTS, reads * (part + 1) // PARTS
    _sum_token(table, places, factors, t * reads + low, high - low, sums[n])


@kernel
def _gather_sum_parts_kernel(table, slots, weights, sums):  # noqa: ANN001, ANN202
    for n in prange(sums.shape[0]):
        _sum_part(table, slots, weights, n, sums)


@helper
def _dot_token(table, places, vector, first, reads, dots):  # noqa: ANN001, ANN202
    grouped = reads - reads % GROUP
    for j in range(0, grouped, GROUP):
        dot_group(table, places, vector, dots, first + j)
    for j in range(grouped, reads):
        dot_one(table, places, vector, dots, first + j)


@kernel
def _gather_dot_kernel(table, slots, x, out):  # noqa: ANN001, ANN202
    reads, places, dots = slots.shape[1], slots.reshape(-1), out.reshape(-1)
    for t in prange(slots.shape[0]):
        _dot_token(table, places, x[t], t * reads, reads, dots)


@helper
def _scatter_columns(low, slots, weights, x, out):  # noqa: ANN001, ANN202
    high = min(low + BLOCK_V, out.shape[1])
    for t in range(slots.shape[0]):
        for j in range(slots.shape[1]):
            row, weight = out[slots[t, j]], weights[t, j]
            for v in range(low, high):
                row[v] += weight * x[t, v]


@kernel
def _scatter_sum_kernel(slots, weights, x, out):  # noqa: ANN001, ANN202
    # A thread owns columns, so no two threads write one number and the order of sums is fixed.
    for block in prange((out.shape[1] + BLOCK_V - 1) // BLOCK_V):
        _scatter_columns(block * BLOCK_V, slots, weights, x, out)


def gather_sum(table: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    """out[t] = sum_j weights[t, j] * table[slots[t, j]]."""
    follow_torch_threads()
    tokens, few = len(slots), len(slots) < PARTS
    out = torch.empty(tokens * PARTS if few else tokens, table.shape[1])
    (_gather_sum_parts_kernel if few else _gather_sum_kernel)(
        as_array(table.contiguous()),
        as_array(slots.contiguous()),
        as_array(weights.float().contiguous()),
        as_array(out),
    )
    out = out.view(tokens, PARTS, table.shape[1]).sum(1) if few else out
    return out.to(torch.promote_types(table.dtype, weights.dtype))


def gather_dot(table: Tensor, slots: Tensor, x: Tensor) -> Tensor:
    """out[t, j] = table[slots[t, j]] . x[t]."""
    follow_torch_threads()
    out = torch.empty(slots.shape)
    _gather_dot_kernel(
        as_array(table.contiguous()),
        as_array(slots.contiguous()),
        as_array(x.float().contiguous()),
        as_array(out),
    )
    return out


def scatter_sum(slots: Tensor, weights: Tensor, x: Tensor, num_rows: int) -> Tensor:
    """out[n] = sum of weights[t, j] * x[t] over all (t, j) with slots[t, j] = n."""
    follow_torch_threads()
    out = torch.zeros(num_rows, x.shape[1])
    _scatter_sum_kernel(
        as_array(slots.contiguous()),
        as_array(weights.float().contiguous()),
        as_array(x.float().contiguous()),
        as_array(out),
    )
    return out
