"""WRITE in plain PyTorch: defines correct, on any device. Makes the [R, V] row sums."""

import torch
from torch import Tensor

MASK32 = 0xFFFFFFFF


def group_by_row(slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sort row numbers: the distinct rows, where each row's group starts, and the order."""
    ordered, order = torch.sort(slots, stable=True)
    rows, counts = torch.unique_consecutive(ordered, return_counts=True)
    starts = torch.zeros(rows.shape[0] + 1, dtype=torch.int64, device=slots.device)
    torch.cumsum(counts, 0, out=starts[1:])
    return rows.long(), starts, order


def row_sums(starts: Tensor, sources: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
    """sums[r] = sum of weights[e] * vectors[sources[e]] over starts[r] <= e < starts[r + 1]."""
    dtype = torch.promote_types(vectors.dtype, weights.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    scaled = weights.to(dtype)[:, None] * vectors[sources].to(dtype)  # [E, V]
    counts = starts.diff()
    group = torch.repeat_interleave(torch.arange(counts.shape[0], device=starts.device), counts)
    sums = torch.zeros(counts.shape[0], vectors.shape[1], dtype=dtype, device=vectors.device)
    return sums.index_add_(0, group, scaled)


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


def load_rows(table: Tensor, rows: Tensor, row_decay: Tensor) -> Tensor:
    """Read rows in fp32 (fp64 if the table is), each times its decay where there is one."""
    weight = table[rows].to(torch.promote_types(table.dtype, torch.float32))
    return weight * row_decay[:, None].to(weight.dtype) if row_decay.numel() else weight


def store_rows(table: Tensor, rows: Tensor, values: Tensor, seed: int) -> None:
    """Write fp32 values to rows of the table, to bf16 stochastically when seed >= 0."""
    if table.dtype == torch.bfloat16 and seed >= 0:
        values = stochastic_bf16(values, rows, seed)
    table[rows] = values.to(table.dtype)


def row_adamw_(
    table: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    gradient: Tensor,
    row_decay: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    seed: int,
) -> None:
    """One AdamW step on the named rows. An exp_avg without rows means no first moment."""
    weight = load_rows(table, rows, row_decay)
    gradient = gradient.to(weight.dtype)
    square = gradient.square()
    if exp_avg_sq.shape[1] != table.shape[1]:
        square = square.mean(1, keepdim=True)
    exp_avg_sq[rows] = second = beta2 * exp_avg_sq[rows] + (1 - beta2) * square
    first = gradient
    if exp_avg.shape[0]:
        exp_avg[rows] = first = beta1 * exp_avg[rows] + (1 - beta1) * gradient
        first = first / (1 - beta1**step)
    scale = (second / (1 - beta2**step)).sqrt() + eps
    store_rows(table, rows, weight - lr * first / scale, seed)


def row_sgd_(
    table: Tensor,
    rows: Tensor,
    gradient: Tensor,
    row_decay: Tensor,
    *,
    lr: float,
    seed: int,
) -> None:
    """One SGD step on the named rows."""
    weight = load_rows(table, rows, row_decay)
    gradient = gradient.to(weight.dtype)
    store_rows(table, rows, weight - lr * gradient, seed)


def row_adagrad_(
    table: Tensor,
    square_sum: Tensor,
    rows: Tensor,
    gradient: Tensor,
    row_decay: Tensor,
    *,
    lr: float,
    eps: float,
    seed: int,
) -> None:
    """One Adagrad step on the named rows."""
    weight = load_rows(table, rows, row_decay)
    gradient = gradient.to(weight.dtype)
    square = gradient.square()
    if square_sum.shape[1] != table.shape[1]:
        square = square.mean(1, keepdim=True)
    square_sum[rows] = total = square_sum[rows] + square
    store_rows(table, rows, weight - lr * gradient / (total.sqrt() + eps), seed)
