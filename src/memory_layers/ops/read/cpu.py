"""READ on the CPU in Numba: fp32 and bf16 tables, fp32 sums, any width, 64-bit addresses."""

import numpy as np
import torch
from numba import prange
from torch import Tensor

from memory_layers.ops.numba_kernel import follow_torch_threads, kernel
from memory_layers.ops.numba_rows import as_array
from memory_layers.ops.numba_vectors import GROUP, add_group, add_one, dot_group, dot_one

# Columns that one thread owns in scatter_sum: a cache line of fp32 and a vector register.
BLOCK_V = 16


@kernel(parallel=True)
def _gather_sum_kernel(table, slots, weights, out):  # noqa: ANN001, ANN202
    reads = slots.shape[1]
    places, factors = slots.reshape(-1), weights.reshape(-1)
    grouped = reads - reads % GROUP
    for t in prange(slots.shape[0]):
        total = out[t]
        total[:] = np.float32(0)
        for j in range(0, grouped, GROUP):
            add_group(table, places, factors, total, t * reads + j)
        for j in range(grouped, reads):
            add_one(table, places, factors, total, t * reads + j)


@kernel(parallel=True)
def _gather_dot_kernel(table, slots, x, out):  # noqa: ANN001, ANN202
    reads = slots.shape[1]
    places, dots = slots.reshape(-1), out.reshape(-1)
    grouped = reads - reads % GROUP
    for t in prange(slots.shape[0]):
        for j in range(0, grouped, GROUP):
            dot_group(table, places, x[t], dots, t * reads + j)
        for j in range(grouped, reads):
            dot_one(table, places, x[t], dots, t * reads + j)


@kernel(parallel=True)
def _scatter_sum_kernel(slots, weights, x, out):  # noqa: ANN001, ANN202
    blocks = (out.shape[1] + BLOCK_V - 1) // BLOCK_V
    # A thread owns columns, so no two threads write one number and the order of sums is fixed.
    for block in prange(blocks):
        low = block * BLOCK_V
        high = min(low + BLOCK_V, out.shape[1])
        for t in range(slots.shape[0]):
            for j in range(slots.shape[1]):
                row = out[slots[t, j]]
                weight = weights[t, j]
                for v in range(low, high):
                    row[v] += weight * x[t, v]


def gather_sum(table: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    """out[t] = sum_j weights[t, j] * table[slots[t, j]]."""
    follow_torch_threads()
    out = torch.empty(slots.shape[0], table.shape[1])
    _gather_sum_kernel(
        as_array(table.contiguous()),
        as_array(slots.contiguous()),
        as_array(weights.float().contiguous()),
        as_array(out),
    )
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
