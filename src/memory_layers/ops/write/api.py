"""WRITE: step only the touched rows of a table, straight from the factored gradient.

A RowGradient names each touched row once and keeps its gradient as a sum of factors. The steps
below add the factors up in fp32, one row at a time, and change the table in place.
"""

import torch
from torch import Tensor

from memory_layers.ops.impl import Impl, check_rows, choose
from memory_layers.ops.write import reference
from memory_layers.ops.write.gradient import RowGradient
from memory_layers.shapes import check_shape


def row_adamw_(
    table: Tensor,
    exp_avg: Tensor | None,
    exp_avg_sq: Tensor,
    gradient: RowGradient,
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    row_decay: Tensor | None = None,
    master: Tensor | None = None,
    seed: int | None = None,
    impl: Impl = "auto",
) -> None:
    """Take one AdamW step on the touched rows, in place (arXiv 1711.05101, algorithm 2).

    m = beta1 * m + (1 - beta1) * g        v = beta2 * v + (1 - beta2) * g * g
    row = row_decay * row - lr * m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps)

    The moments of a row advance only in the steps that touch it, and the bias is corrected with
    the global step: equal to torch.optim.AdamW when every step touches every row.

    Args:
        table: [N, V], changed in place.
        exp_avg: [N, V], changed in place. None: no first moment, m = g. This and all state is
            fp32, for an fp64 table fp64.
        exp_avg_sq: [N, V], or [N, 1] for one second moment a row (the mean square of g).
        gradient: The touched rows and their factors.
        step: Global step, counted from 1.
        lr: Learning rate.
        betas: Decay rates of the moments.
        eps: Added to the root.
        row_decay: [R] fp32, factor on each touched row: its weight decay since its last step.
        master: [N, V] fp32 copy that holds the exact values of a bf16 table. It is stepped, and
            the rounded rows are written to the table.
        seed: For a bf16 table without master: seed of the stochastic rounding. None rounds to the
            nearest, which loses small updates.
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.

    Raises:
        ValueError: Shapes or types disagree, a row is out of range, or `impl` does not fit.
    """
    target = _check_step(table, gradient, row_decay, master, seed)
    _check_state("exp_avg_sq", exp_avg_sq, table, rowwise=True)
    if exp_avg is not None:
        _check_state("exp_avg", exp_avg, table, rowwise=False)
    if step < 1:
        raise ValueError(f"step must be >= 1, got {step}")
    torch.ops.memory_layers.row_adamw_(
        target,
        table.new_empty(0, 0, dtype=torch.float32) if exp_avg is None else exp_avg,
        exp_avg_sq,
        gradient.rows,
        *gradient.factors,
        _no_decay(table) if row_decay is None else row_decay,
        gradient.scale,
        lr,
        betas[0],
        betas[1],
        eps,
        step,
        -1 if seed is None else seed,
        impl,
    )
    _finish(table, master, gradient.rows, impl)


def row_sgd_(
    table: Tensor,
    gradient: RowGradient,
    *,
    lr: float,
    row_decay: Tensor | None = None,
    master: Tensor | None = None,
    seed: int | None = None,
    impl: Impl = "auto",
) -> None:
    """Take one SGD step on the touched rows, in place: row = row_decay * row - lr * g.

    Args:
        table: [N, V], changed in place.
        gradient: The touched rows and their factors.
        lr: Learning rate.
        row_decay: As for row_adamw_.
        master: As for row_adamw_.
        seed: As for row_adamw_.
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.

    Raises:
        ValueError: As for row_adamw_.
    """
    target = _check_step(table, gradient, row_decay, master, seed)
    torch.ops.memory_layers.row_sgd_(
        target,
        gradient.rows,
        *gradient.factors,
        _no_decay(table) if row_decay is None else row_decay,
        gradient.scale,
        lr,
        -1 if seed is None else seed,
        impl,
    )
    _finish(table, master, gradient.rows, impl)


def row_adagrad_(
    table: Tensor,
    square_sum: Tensor,
    gradient: RowGradient,
    *,
    lr: float,
    eps: float = 1e-10,
    row_decay: Tensor | None = None,
    master: Tensor | None = None,
    seed: int | None = None,
    impl: Impl = "auto",
) -> None:
    """Take one Adagrad step on the touched rows, in place.

    s = s + g * g        row = row_decay * row - lr * g / (sqrt(s) + eps)

    Args:
        table: [N, V], changed in place.
        square_sum: [N, V], or [N, 1] for one number a row (the mean square of g). fp32, for an
            fp64 table fp64.
        gradient: The touched rows and their factors.
        lr: Learning rate.
        eps: Added to the root.
        row_decay: As for row_adamw_.
        master: As for row_adamw_.
        seed: As for row_adamw_.
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.

    Raises:
        ValueError: As for row_adamw_.
    """
    target = _check_step(table, gradient, row_decay, master, seed)
    _check_state("square_sum", square_sum, table, rowwise=True)
    torch.ops.memory_layers.row_adagrad_(
        target,
        square_sum,
        gradient.rows,
        *gradient.factors,
        _no_decay(table) if row_decay is None else row_decay,
        gradient.scale,
        lr,
        eps,
        -1 if seed is None else seed,
        impl,
    )
    _finish(table, master, gradient.rows, impl)


def _no_decay(table: Tensor) -> Tensor:
    return table.new_empty(0, dtype=torch.float32)


def _check_step(
    table: Tensor,
    gradient: RowGradient,
    row_decay: Tensor | None,
    master: Tensor | None,
    seed: int | None,
) -> Tensor:
    """Check what all steps share, and return the tensor to step: the master copy or the table."""
    sizes = check_shape("table", table, "N V")
    check_shape("gradient.vectors", gradient.vectors, "S V", V=sizes["V"])
    if row_decay is not None:
        check_shape("row_decay", row_decay, "R", R=gradient.rows.shape[0])
        if row_decay.dtype != torch.float32:
            raise ValueError(f"row_decay must be float32, got {row_decay.dtype}")
    if not table.is_contiguous():
        raise ValueError("table must be contiguous. hint: pass table.contiguous()")
    check_rows("gradient.rows", gradient.rows, sizes["N"])
    if table.dtype != torch.bfloat16 and (master is not None or seed is not None):
        raise ValueError(f"master and seed are for bfloat16 tables, got {table.dtype}")
    if seed is not None and seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    if master is None:
        return table.detach()
    if seed is not None:
        raise ValueError(
            "pass master or seed, not both: a master copy needs no stochastic rounding"
        )
    _check_state("master", master, table, rowwise=False)
    return master


def _check_state(name: str, state: Tensor, table: Tensor, *, rowwise: bool) -> None:
    allowed = [list(table.shape)] + ([[table.shape[0], 1]] if rowwise else [])
    if list(state.shape) not in allowed:
        raise ValueError(
            f"{name} must have shape {' or '.join(map(str, allowed))}, got {list(state.shape)}"
        )
    dtype = torch.promote_types(table.dtype, torch.float32)
    if state.dtype != dtype:
        raise ValueError(f"{name} must be {dtype} for a {table.dtype} table, got {state.dtype}")
    if not state.is_contiguous():
        raise ValueError(f"{name} must be contiguous")


def _finish(table: Tensor, master: Tensor | None, rows: Tensor, impl: Impl) -> None:
    if master is not None:
        if choose(impl, "copy_rows_", table, master) == "cpu":
            from memory_layers.ops.write import cpu

            cpu.copy_rows_(table, rows, master)
        else:
            table.detach()[rows] = master[rows].to(table.dtype)
    # Kernels write behind autograd's back: a graph that saved the old rows must notice.
    torch.autograd.graph.increment_version(table)


_FACTORS = "Tensor rows, Tensor starts, Tensor sources, Tensor weights, Tensor vectors"
torch.library.define(
    "memory_layers::row_adamw_",
    f"(Tensor(a!) table, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, {_FACTORS}, Tensor row_decay, "
    "float scale, float lr, float beta1, float beta2, float eps, int step, int seed, str impl)"
    " -> ()",
)
torch.library.define(
    "memory_layers::row_sgd_",
    f"(Tensor(a!) table, {_FACTORS}, Tensor row_decay, float scale, float lr, int seed, str impl)"
    " -> ()",
)
torch.library.define(
    "memory_layers::row_adagrad_",
    f"(Tensor(a!) table, Tensor(b!) square_sum, {_FACTORS}, Tensor row_decay, float scale, "
    "float lr, float eps, int seed, str impl) -> ()",
)


@torch.library.impl("memory_layers::row_adamw_", ("cpu", "cuda"))
def _row_adamw_(
    table: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    rows: Tensor,
    starts: Tensor,
    sources: Tensor,
    weights: Tensor,
    vectors: Tensor,
    row_decay: Tensor,
    scale: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    seed: int,
    impl: str,
) -> None:
    numbers = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "step": step, "seed": seed}
    factors = (starts, sources, weights, vectors)
    if choose(impl, "row_adamw_", table, weights, vectors) == "cpu":
        from memory_layers.ops.write import cpu

        cpu.row_adamw_(table, exp_avg, exp_avg_sq, rows, factors, row_decay, scale=scale, **numbers)
    else:
        gradient = reference.row_sums(*factors) * scale
        reference.row_adamw_(table, exp_avg, exp_avg_sq, rows, gradient, row_decay, **numbers)


@torch.library.impl("memory_layers::row_sgd_", ("cpu", "cuda"))
def _row_sgd_(
    table: Tensor,
    rows: Tensor,
    starts: Tensor,
    sources: Tensor,
    weights: Tensor,
    vectors: Tensor,
    row_decay: Tensor,
    scale: float,
    lr: float,
    seed: int,
    impl: str,
) -> None:
    factors = (starts, sources, weights, vectors)
    if choose(impl, "row_sgd_", table, weights, vectors) == "cpu":
        from memory_layers.ops.write import cpu

        cpu.row_sgd_(table, rows, factors, row_decay, scale=scale, lr=lr, seed=seed)
    else:
        gradient = reference.row_sums(*factors) * scale
        reference.row_sgd_(table, rows, gradient, row_decay, lr=lr, seed=seed)


@torch.library.impl("memory_layers::row_adagrad_", ("cpu", "cuda"))
def _row_adagrad_(
    table: Tensor,
    square_sum: Tensor,
    rows: Tensor,
    starts: Tensor,
    sources: Tensor,
    weights: Tensor,
    vectors: Tensor,
    row_decay: Tensor,
    scale: float,
    lr: float,
    eps: float,
    seed: int,
    impl: str,
) -> None:
    factors = (starts, sources, weights, vectors)
    numbers = {"lr": lr, "eps": eps, "seed": seed}
    if choose(impl, "row_adagrad_", table, weights, vectors) == "cpu":
        from memory_layers.ops.write import cpu

        cpu.row_adagrad_(table, square_sum, rows, factors, row_decay, scale=scale, **numbers)
    else:
        gradient = reference.row_sums(*factors) * scale
        reference.row_adagrad_(table, square_sum, rows, gradient, row_decay, **numbers)


@torch.library.register_fake("memory_layers::row_adamw_")
def _(*_args: object) -> None:
    return None


@torch.library.register_fake("memory_layers::row_sgd_")
def _(*_args: object) -> None:
    return None


@torch.library.register_fake("memory_layers::row_adagrad_")
def _(*_args: object) -> None:
    return None
