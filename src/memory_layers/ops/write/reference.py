"""WRITE in plain PyTorch: defines correct, on any device. Makes the [R, V] row sums."""

from collections.abc import Sequence

import torch
from torch import Tensor

from memory_layers.ops.write.entries import PLACE_BITS, PLACE_MASK, merge

MASK32 = 0xFFFFFFFF


def row_sums(
    entries: Sequence[Tensor],
    weights: Sequence[Tensor],
    vectors: Sequence[Tensor],
    scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the distinct rows, rising, and scale * sum of weights[t, j] * vectors[t] of each."""
    entry, weight, vector = merge(entries, weights, vectors)
    dtype = torch.promote_types(torch.promote_types(vector.dtype, weight.dtype), torch.float32)
    rows, group = torch.unique_consecutive(entry >> PLACE_BITS, return_inverse=True)
    place = entry & PLACE_MASK
    source = place // max(1, weight.shape[1])
    scaled = weight.flatten()[place].to(dtype)[:, None] * vector[source].to(dtype)  # [E, V]
    sums = torch.zeros(rows.shape[0], vector.shape[1], dtype=dtype, device=vector.device)
    return rows, sums.index_add_(0, group, scaled).mul_(scale)


def row_norm(
    entries: Sequence[Tensor],
    weights: Sequence[Tensor],
    vectors: Sequence[Tensor],
    scale: Tensor,
) -> Tensor:
    """Euclidean norm of all row sums together."""
    return row_sums(entries, weights, vectors, scale)[1].norm()


def hash32(number: Tensor) -> Tensor:
    """Mix 32 bits held in int64 (the "lowbias32" finaliser of Chris Wellons)."""
    number = ((number ^ (number >> 16)) * 0x7FEB352D) & MASK32
    number = ((number ^ (number >> 15)) * 0x846CA68B) & MASK32
    return number ^ (number >> 16)


def stochastic_bf16(values: Tensor, rows: Tensor, seed: int) -> Tensor:
    """Round fp32 rows to bf16, up with the probability of the lost fraction.

    The random bits are a hash of (seed, row, column): they depend on neither order nor threads.
    """
    column = torch.arange(values.shape[1], device=values.device)
    start = hash32(hash32((seed & MASK32) ^ (rows >> 32)) ^ (rows & MASK32))  # [R]
    random = hash32((start[:, None] + column * 0x9E3779B9) & MASK32)  # [R, V]
    bits = values.contiguous().view(torch.int32).long() & MASK32
    rounded = (bits + (random & 0xFFFF)) & 0xFFFF0000
    rounded = torch.where(values.isfinite(), rounded, bits & 0xFFFF0000)
    signed = torch.where(rounded >= 2**31, rounded - 2**32, rounded).to(torch.int32)
    return torch.where(values.isnan(), values, signed.view(torch.float32)).to(torch.bfloat16)


def load_rows(
    table: Tensor, master: Tensor, rows: Tensor, decayed: Tensor, decay_total: float
) -> Tensor:
    """Read rows in fp32 (fp64 if the table is), with the weight decay they have missed so far."""
    source = master if master.numel() else table
    weight = source[rows].to(torch.promote_types(table.dtype, torch.float32))
    if decayed.numel():
        weight *= (decay_total - decayed[rows]).exp().to(weight.dtype)[:, None]
        decayed[rows] = decay_total
    return weight


def store_rows(table: Tensor, master: Tensor, rows: Tensor, values: Tensor, seed: int) -> None:
    """Write rows to the table and its master copy, to bf16 stochastically when seed >= 0."""
    if master.numel():
        master[rows] = values
    if table.dtype == torch.bfloat16 and seed >= 0:
        values = stochastic_bf16(values, rows, seed)
    table[rows] = values.to(table.dtype)


def row_adamw_(
    table: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    factors: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Tensor],
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
    rows, gradient = row_sums(*factors)
    weight = load_rows(table, master, rows, decayed, decay_total)
    gradient = gradient.to(weight.dtype)
    square = gradient.square()
    if exp_avg_sq.shape[1] != table.shape[1]:
        square = square.mean(1, keepdim=True)
    exp_avg_sq[rows] = second = beta2 * exp_avg_sq[rows] + (1 - beta2) * square
    first = gradient
    if exp_avg.shape[0]:
        exp_avg[rows] = first = beta1 * exp_avg[rows] + (1 - beta1) * gradient
        first = first / (1 - beta1**step)
    divisor = (second / (1 - beta2**step)).sqrt() + eps
    store_rows(table, master, rows, weight - lr * first / divisor, seed)


def row_sgd_(
    table: Tensor,
    factors: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Tensor],
    decayed: Tensor,
    master: Tensor,
    *,
    decay_total: float,
    lr: float,
    seed: int,
) -> None:
    """One SGD step on the touched rows."""
    rows, gradient = row_sums(*factors)
    weight = load_rows(table, master, rows, decayed, decay_total)
    store_rows(table, master, rows, weight - lr * gradient.to(weight.dtype), seed)


def row_adagrad_(
    table: Tensor,
    square_sum: Tensor,
    factors: tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Tensor],
    decayed: Tensor,
    master: Tensor,
    *,
    decay_total: float,
    lr: float,
    eps: float,
    seed: int,
) -> None:
    """One Adagrad step on the touched rows."""
    rows, gradient = row_sums(*factors)
    weight = load_rows(table, master, rows, decayed, decay_total)
    gradient = gradient.to(weight.dtype)
    square = gradient.square()
    if square_sum.shape[1] != table.shape[1]:
        square = square.mean(1, keepdim=True)
    square_sum[rows] = total = square_sum[rows] + square
    store_rows(table, master, rows, weight - lr * gradient / (total.sqrt() + eps), seed)
