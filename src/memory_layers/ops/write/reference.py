"""WRITE in plain PyTorch: defines correct, on any device. Makes the [R, V] row sums."""

from collections.abc import Sequence

import torch
from torch import Tensor

from memory_layers.ops.dispatch import sum_dtype
from memory_layers.ops.write.entries import PLACE_BITS, PLACE_MASK, Factors, merge
from memory_layers.ops.write.state import RowState, fading, steps_ahead

MASK32 = 0xFFFFFFFF


def row_sums(factors: Factors) -> tuple[Tensor, Tensor]:
    """Return the distinct rows, rising, and scale * sum of weights[t, j] * vectors[t] of each."""
    entry, weight, vector = merge(*factors[:3])
    dtype = sum_dtype(vector, weight)
    rows, group = torch.unique_consecutive(entry >> PLACE_BITS, return_inverse=True)
    place = entry & PLACE_MASK
    source = place // max(1, weight.shape[1])
    scaled = weight.flatten()[place].to(dtype)[:, None] * vector[source].to(dtype)  # [E, V]
    sums = torch.zeros(rows.shape[0], vector.shape[1], dtype=dtype, device=vector.device)
    return rows, sums.index_add_(0, group, scaled).mul_(factors[3])


def row_norm(factors: Factors) -> Tensor:
    """Euclidean norm of all row sums together."""
    return row_sums(factors)[1].norm()


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
    rows, gradient = row_sums(factors)
    source = table if state.master is None else state.master
    values = source[rows].to(torch.promote_types(table.dtype, torch.float32))
    values += _to_take_back(state, rows, betas, eps)
    if state.decayed is not None:
        # What the row has missed so far.
        values *= (state.decay_total - state.decayed[rows]).exp().to(values.dtype)[:, None]
        state.decayed[rows] = state.decay_total
    gradient = gradient.to(values.dtype)
    step_size = state.numbers(lr, betas, eps)[0]
    if state.exp_avg_sq is None:
        values = values - step_size * gradient
    else:
        first, divisor = _advance(state, state.exp_avg_sq, rows, gradient, betas)
        values = values - step_size * first / (divisor + eps)
        if state.last_step is not None and state.last_lr is not None:
            state.last_step[rows], state.last_lr[rows] = state.step, lr
    if state.master is not None:
        state.master[rows] = values
    if seed is not None:
        values = stochastic_bf16(values, rows, seed)
    table[rows] = values.to(table.dtype)


def _to_take_back(
    state: RowState, rows: Tensor, betas: Sequence[float], eps: float
) -> Tensor | float:
    """Return what the rows were moved ahead by beyond this step."""
    if state.last_step is None or state.last_lr is None:
        return 0.0
    if state.exp_avg is None or state.exp_avg_sq is None:
        return 0.0
    last = state.last_step[rows].to(state.exp_avg.dtype)[:, None]
    share = fading(betas) ** (state.step - last) * steps_ahead(betas, state.step)
    root = (1 - betas[1] ** last).sqrt()
    step_size = state.last_lr[rows][:, None] * share / root
    moved = step_size * state.exp_avg[rows] / (state.exp_avg_sq[rows].sqrt() / root + eps)
    return torch.where(last > 0, moved, 0)


def _advance(
    state: RowState, exp_avg_sq: Tensor, rows: Tensor, gradient: Tensor, betas: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Advance the moments of the rows, and return the first and the root of the second.

    The first is corrected by the step size.
    """
    beta1, beta2 = keep1, keep2 = betas
    if state.last_step is not None:
        steps = (state.step - state.last_step[rows]).to(exp_avg_sq.dtype)[:, None]
        keep1, keep2 = beta1**steps, beta2**steps
    square = gradient.square()
    if exp_avg_sq.shape[1] != gradient.shape[1]:
        square = square.mean(1, keepdim=True)
    exp_avg_sq[rows] = second = keep2 * exp_avg_sq[rows] + (1 - beta2) * square
    first = gradient
    if state.exp_avg is not None:
        state.exp_avg[rows] = first = keep1 * state.exp_avg[rows] + (1 - beta1) * gradient
    return first, (second / (1 - beta2**state.step)).sqrt()
