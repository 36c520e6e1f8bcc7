"""READ in plain PyTorch: defines correct, on any device and in any floating-point type."""

import torch
from torch import Tensor

from memory_layers.ops.dispatch import sum_dtype


def gather_sum(table: Tensor, slots: Tensor, weights: Tensor) -> Tensor:
    """out[t] = sum_j weights[t, j] * table[slots[t, j]]."""
    dtype = sum_dtype(table, weights)
    rows = table[slots.long()].to(dtype)  # [T, J, V]
    out = torch.einsum("tj,tjv->tv", weights.to(dtype), rows)
    return out.to(torch.promote_types(table.dtype, weights.dtype))


def gather_dot(table: Tensor, slots: Tensor, x: Tensor) -> Tensor:
    """out[t, j] = table[slots[t, j]] . x[t]."""
    dtype = sum_dtype(table, x)
    return torch.einsum("tjv,tv->tj", table[slots.long()].to(dtype), x.to(dtype))


def scatter_sum(slots: Tensor, weights: Tensor, x: Tensor, num_rows: int) -> Tensor:
    """out[n] = sum of weights[t, j] * x[t] over all (t, j) with slots[t, j] = n."""
    dtype = sum_dtype(weights, x)
    outer = weights.to(dtype)[:, :, None] * x.to(dtype)[:, None, :]  # [T, J, V]
    out = torch.zeros(num_rows, x.shape[1], dtype=dtype, device=x.device)
    return out.index_add_(0, slots.long().flatten(), outer.flatten(0, 1))
