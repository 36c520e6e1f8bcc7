"""WRITE: step only the touched rows of a table, straight from the factored gradient.

A RowGradient keeps the factors of the gradient, sorted by row. The step below adds them up in fp32,
one row at a time, and changes the table in place.
"""

from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor

from memory_layers.ops.dispatch import Impl, check_same_device, kernels
from memory_layers.ops.write.entries import LARGEST_TABLE, check_entries
from memory_layers.ops.write.gradient import RowGradient
from memory_layers.ops.write.state import RowState, Rule
from memory_layers.shapes import check_shape


def row_step_(
    table: Tensor,
    state: RowState,
    gradient: RowGradient,
    rule: Rule = "adamw",
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    seed: int | None = None,
    impl: Impl = "auto",
) -> None:
    """Take one step of an optimizer on the touched rows, in place.

    AdamW (arXiv 1711.05101, algorithm 2):
        m = beta1 * m + (1 - beta1) * g        v = beta2 * v + (1 - beta2) * g * g
        row = decay * row - lr * m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps)
    SGD:
        row = decay * row - lr * g

    The moments of a row advance only in the steps that touch it, and the bias is corrected with
    the global step: equal to torch.optim.AdamW when every step touches every row.

    AdamW, ahead (`state.last_step`): a touched row moves by all that torch.optim.AdamW would move
    it by if it were never touched again, and takes back what was not to be. With t the step, n the
    steps since the last touch, r = beta1 / sqrt(beta2), S of `steps_ahead`, c(t) = 1 - beta2^t:
        row = decay * (row + last_lr * r^n * S(t) / sqrt(c(t - n)) * m / (sqrt(v / c(t - n)) + eps))
        m = beta1^n * m + (1 - beta1) * g      v = beta2^n * v + (1 - beta2) * g * g
        row = row - lr * S(t) / sqrt(c(t)) * m / (sqrt(v / c(t)) + eps)

    Args:
        table: [N, V], changed in place.
        state: Moments, step, weight decay and master copy of the rows, changed in place. SGD has
            no moments.
        gradient: The touched rows and their factors.
        rule: "adamw" or "sgd".
        lr: Learning rate.
        betas: Decay rates of AdamW's moments.
        eps: Added to AdamW's root.
        seed: For a bf16 table without master: seed of the stochastic rounding. None rounds to the
            nearest, which loses small updates.
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.

    Cost:
        Reads the factors once, and reads and writes the R touched rows of the table and of each
        tensor of the state. The kernels make no [R, V] tensor.

    Raises:
        ValueError: Shapes or types disagree, a row is out of range, the rule has other state, or
            `impl` does not fit.
    """
    sizes = check_shape("table", table, "N V")
    _check_rounding(table, state.master, seed)
    _check_state(table, state, rule)
    _check_ahead(table, state, betas)
    _check_gradient(table, gradient, sizes)
    torch.ops.memory_layers.row_step_(
        table.detach(), state.exp_avg, state.exp_avg_sq, state.decayed, state.master,
        state.last_step, state.last_lr,
        gradient.entries, gradient.weights, gradient.vectors, gradient.scale,
        rule, state.step, state.decay_total, lr, betas, eps, seed, impl,
    )  # fmt: skip
    # Kernels write behind autograd's back: a graph that saved the old rows must notice.
    torch.autograd.graph.increment_version(table)


def _check_gradient(table: Tensor, gradient: RowGradient, sizes: Mapping[str, int]) -> None:
    if sizes["N"] > LARGEST_TABLE:
        raise ValueError(f"table may have at most {LARGEST_TABLE} rows, got {sizes['N']}")
    for vectors in gradient.vectors:
        check_shape("gradient.vectors", vectors, "T V", V=sizes["V"])
    check_same_device(table=table, gradient=gradient.scale)
    for entries in gradient.entries:
        check_entries(entries, sizes["N"])


def _check_rounding(table: Tensor, master: Tensor | None, seed: int | None) -> None:
    if not table.is_contiguous():
        raise ValueError("table must be contiguous. hint: pass table.contiguous()")
    if master is not None and table.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"master is for bfloat16 and float16 tables, got {table.dtype}")
    if seed is not None and table.dtype != torch.bfloat16:
        raise ValueError(f"seed is for bfloat16 tables, got {table.dtype}")
    if seed is not None and seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    if seed is not None and master is not None:
        raise ValueError(
            "pass master or seed, not both: a master copy needs no stochastic rounding"
        )


def _check_state(table: Tensor, state: RowState, rule: str) -> None:
    if rule not in get_args(Rule):
        raise ValueError(f'rule must be "adamw" or "sgd", got {rule!r}')
    if rule == "adamw" and state.exp_avg_sq is None:
        raise ValueError('rule="adamw" needs exp_avg_sq in its state')
    if rule == "sgd" and not (state.exp_avg is None and state.exp_avg_sq is None):
        raise ValueError('rule="sgd" has no moments. hint: leave exp_avg and exp_avg_sq out')
    if state.step < 1:
        raise ValueError(f"step must be >= 1, got {state.step}")
    (rows, width), decayed = table.shape, state.decayed
    dtype = torch.promote_types(table.dtype, torch.float32)
    for name in ("exp_avg", "exp_avg_sq", "master"):
        tensor: Tensor | None = getattr(state, name)
        if tensor is None:
            continue
        allowed = [[rows, width], *([[rows, 1]] if name == "exp_avg_sq" else [])]
        if list(tensor.shape) not in allowed:
            shapes = " or ".join(map(str, allowed))
            raise ValueError(f"{name} must have shape {shapes}, got {list(tensor.shape)}")
        if tensor.dtype != dtype:
            raise ValueError(
                f"{name} must be {dtype} for a {table.dtype} table, got {tensor.dtype}"
            )
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous")
        check_same_device(table=table, **{name: tensor})
    if decayed is not None:
        check_shape("decayed", decayed, "N", N=rows)
        if decayed.dtype != torch.float64 or not decayed.is_contiguous():
            raise ValueError(f"decayed must be float64 and contiguous, got {decayed.dtype}")
        check_same_device(table=table, decayed=decayed)


def _check_ahead(table: Tensor, state: RowState, betas: Sequence[float]) -> None:
    if (state.last_step is None) != (state.last_lr is None):
        raise ValueError("last_step and last_lr are given together, or neither")
    for name, dtype in (("last_step", torch.int32), ("last_lr", torch.float32)):
        tensor: Tensor | None = getattr(state, name)
        if tensor is None:
            continue
        if state.exp_avg is None or state.exp_avg_sq is None:
            raise ValueError(f"{name} needs exp_avg and exp_avg_sq in its state")
        if state.exp_avg_sq.shape != state.exp_avg.shape:
            raise ValueError(f"{name} needs exp_avg_sq [N, V], got {list(state.exp_avg_sq.shape)}")
        check_shape(name, tensor, "N", N=table.shape[0])
        if tensor.dtype != dtype or not tensor.is_contiguous():
            raise ValueError(f"{name} must be {dtype} and contiguous, got {tensor.dtype}")
        check_same_device(table=table, **{name: tensor})
        if not betas[0] ** 2 < betas[1]:
            raise ValueError(f"betas must be such that beta1^2 < beta2 for {name}, got {betas}")


torch.library.define(
    "memory_layers::row_step_",
    "(Tensor(a!) table, Tensor(b!)? exp_avg, Tensor(c!)? exp_avg_sq, Tensor(d!)? decayed, "
    "Tensor(e!)? master, Tensor(f!)? last_step, Tensor(g!)? last_lr, "
    "Tensor[] entries, Tensor[] weights, Tensor[] vectors, Tensor scale, "
    "str rule, int step, float decay_total, float lr, float[] betas, float eps, int? seed, "
    "str impl) -> ()",
)


@torch.library.impl("memory_layers::row_step_", ("cpu", "cuda"))
def _row_step_(
    table: Tensor, exp_avg: Tensor | None, exp_avg_sq: Tensor | None, decayed: Tensor | None,
    master: Tensor | None, last_step: Tensor | None, last_lr: Tensor | None, entries: list[Tensor],
    weights: list[Tensor], vectors: list[Tensor], scale: Tensor, rule: str, step: int,
    decay_total: float, lr: float, betas: list[float], eps: float, seed: int | None, impl: str,
) -> None:  # fmt: skip
    ops = kernels("write", impl, f"row_step_ with rule={rule!r}", table, *weights, *vectors)
    state = RowState(exp_avg, exp_avg_sq, step, decayed, decay_total, master, last_step, last_lr)
    factors = (entries, weights, vectors, scale)
    ops.row_step_(table, state, factors, lr=lr, betas=betas, eps=eps, seed=seed)


@torch.library.register_fake("memory_layers::row_step_")
def _(*_args: object) -> None:
    return None
