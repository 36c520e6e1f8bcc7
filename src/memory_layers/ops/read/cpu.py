"""READ on the CPU in Numba: fp32 and bf16 tables, fp32 sums, any width, 64-bit addresses."""

import torch
from numba import prange
from torch import Tensor

from memory_layers.ops._numba.compile import Kernel, follow_torch_threads, helper, inner_loops
from memory_layers.ops._numba.rows import as_array

loops = inner_loops()

# Fewer tokens than this are read in so many parts each, for threads that would have nothing to do.
# The number is fixed: sums must not depend on how many threads there are.
PARTS = 4
# Columns that one thread owns in scatter_sum: a cache line of fp32 and a vector register.
BLOCK_V = 16


@helper
def _sum_token(table, places, factors, first, end, total):
    total[:] = 0
    loops.add_rows(table, places, factors, total, first, end)


@Kernel
def _gather_sum_kernel(table, slots, weights, out):
    reads, places, factors = slots.shape[1], slots.reshape(-1), weights.reshape(-1)
    for t in prange(slots.shape[0]):
        _sum_token(table, places, factors, t * reads, (t + 1) * reads, out[t])


@helper
def _sum_part(table, slots, weights, n, sums):
    reads, places, factors = slots.shape[1], slots.reshape(-1), weights.reshape(-1)
    t, part = n // PARTS, n % PARTS
    low, high = reads * part // PARTS, reads * (part + 1) // PARTS
    _sum_token(table, places, factors, t * reads + low, t * reads + high, sums[n])


@Kernel
def _gather_sum_parts_kernel(table, slots, weights, sums):
    for n in prange(sums.shape[0]):
        _sum_part(table, slots, weights, n, sums)


@Kernel
def _gather_dot_kernel(table, slots, x, out):
    reads, places, dots = slots.shape[1], slots.reshape(-1), out.reshape(-1)
    for t in prange(slots.shape[0]):
        loops.dot_rows(table, places, x[t], dots, t * reads, (t + 1) * reads)


@helper
def _scatter_columns(low, slots, weights, x, out):
    high = min(low + BLOCK_V, out.shape[1])
    for t in range(slots.shape[0]):
        for j in range(slots.shape[1]):
            row, weight = out[slots[t, j]], weights[t, j]
            for v in range(low, high):
                row[v] += weight * x[t, v]


@Kernel
def _scatter_sum_kernel(slots, weights, x, out):
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
