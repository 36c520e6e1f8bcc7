"""WRITE: step only the touched rows of a table, straight from the factored gradient.

A RowGradient keeps the factors of the gradient, sorted by row. The steps below add them up in fp32,
one row at a time, and change the table in place.
"""

import torch
from torch import Tensor

from memory_layers.ops.impl import Impl, check_same_device, kernels
from memory_layers.ops.write.entries import LARGEST_TABLE, check_entries
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
    decayed: Tensor | None = None,
    decay_total: float = 0.0,
    master: Tensor | None = None,
    seed: int | None = None,
    impl: Impl = "auto",
) -> None:
    """Take one AdamW step on the touched rows, in place (arXiv 1711.05101, algorithm 2).

    m = beta1 * m + (1 - beta1) * g        v = beta2 * v + (1 - beta2) * g * g
    row = decay * row - lr * m / (1 - beta1^step) / (sqrt(v / (1 - beta2^step)) + eps)

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
        decayed: [N] fp64, changed in place: the logarithm of the weight decay that each row has
            had so far. None: no weight decay, decay = 1.
        decay_total: The logarithm of the weight decay that is due by now. A touched row gets what
            it missed, decay = exp(decay_total - decayed[row]).
        master: [N, V] fp32 copy that holds the exact values of a bf16 or fp16 table. It is
            stepped, and the rounded rows are written to the table.
        seed: For a bf16 table without master: seed of the stochastic rounding. None rounds to the
            nearest, which loses small updates.
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.

    Raises:
        ValueError: Shapes or types disagree, a row is out of range, or `impl` does not fit.
    """
    _check_step(table, gradient, decayed, master, seed)
    _check_state("exp_avg_sq", exp_avg_sq, table, rowwise=True)
    if exp_avg is not None:
        _check_state("exp_avg", exp_avg, table, rowwise=False)
    if step < 1:
        raise ValueError(f"step must be >= 1, got {step}")
    torch.ops.memory_layers.row_adamw_(
        table.detach(),
        _or_empty(exp_avg, table, torch.float32),
        exp_avg_sq,
        *_factors(gradient),
        _or_empty(decayed, table, torch.float64),
        _or_empty(master, table, torch.float32),
        decay_total,
        lr,
        betas[0],
        betas[1],
        eps,
        step,
        -1 if seed is None else seed,
        impl,
    )
    # Kernels write behind autograd's back: a graph that saved the old rows must notice.
    torch.autograd.graph.increment_version(table)


def row_sgd_(
    table: Tensor,
    gradient: RowGradient,
    *,
    lr: float,
    decayed: Tensor | None = None,
    decay_total: float = 0.0,
    master: Tensor | None = None,
    seed: int | None = None,
    impl: Impl = "auto",
) -> None:
    """Take one SGD step on the touched rows, in place: row = decay * row - lr * g.

    Args:
        table: [N, V], changed in place.
        gradient: The touched rows and their factors.
        lr: Learning rate.
        decayed: As for row_adamw_.
        decay_total: As for row_adamw_.
        master: As for row_adamw_.
        seed: As for row_adamw_.
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.

    Raises:
        ValueError: As for row_adamw_.
    """
    _check_step(table, gradient, decayed, master, seed)
    torch.ops.memory_layers.row_sgd_(
        table.detach(),
        *_factors(gradient),
        _or_empty(decayed, table, torch.float64),
        _or_empty(master, table, torch.float32),
        decay_total,
        lr,
        -1 if seed is None else seed,
        impl,
    )
    # Kernels write behind autograd's back: a graph that saved the old rows must notice.
    torch.autograd.graph.increment_version(table)


def row_adagrad_(
    table: Tensor,
    square_sum: Tensor,
    gradient: RowGradient,
    *,
    lr: float,
    eps: float = 1e-10,
    decayed: Tensor | None = None,
    decay_total: float = 0.0,
    master: Tensor | None = None,
    seed: int | None = None,
    impl: Impl = "auto",
) -> None:
    """Take one Adagrad step on the touched rows, in place.

    s = s + g * g        row = decay * row - lr * g / (sqrt(s) + eps)

    Args:
        table: [N, V], changed in place.
        square_sum: [N, V], or [N, 1] for one number a row (the mean square of g). fp32, for an
            fp64 table fp64.
        gradient: The touched rows and their factors.
        lr: Learning rate.
        eps: Added to the root.
        decayed: As for row_adamw_.
        decay_total: As for row_adamw_.
        master: As for row_adamw_.
        seed: As for row_adamw_.
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.

    Raises:
        ValueError: As for row_adamw_.
    """
    _check_step(table, gradient, decayed, master, seed)
    _check_state("square_sum", square_sum, table, rowwise=True)
    torch.ops.memory_layers.row_adagrad_(
        table.detach(),
        square_sum,
        *_factors(gradient),
        _or_empty(decayed, table, torch.float64),
        _or_empty(master, table, torch.float32),
        decay_total,
        lr,
        eps,
        -1 if seed is None else seed,
        impl,
    )
    # Kernels write behind autograd's back: a graph that saved the old rows must notice.
    torch.autograd.graph.increment_version(table)


def _or_empty(tensor: Tensor | None, table: Tensor, dtype: torch.dtype) -> Tensor:
    return table.new_empty((0, 0), dtype=dtype) if tensor is None else tensor


def _factors(gradient: RowGradient) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
    return (
        list(gradient.entries),
        list(gradient.weights),
        list(gradient.vectors),
        gradient.scale,
    )


def _check_step(
    table: Tensor,
    gradient: RowGradient,
    decayed: Tensor | None,
    master: Tensor | None,
    seed: int | None,
) -> None:
    """Check what all steps share."""
    sizes = check_shape("table", table, "N V")
    if sizes["N"] > LARGEST_TABLE:
        raise ValueError(f"table may have at most {LARGEST_TABLE} rows, got {sizes['N']}")
    for vectors in gradient.vectors:
        check_shape("gradient.vectors", vectors, "T V", V=sizes["V"])
    if decayed is not None:
        check_shape("decayed", decayed, "N", N=sizes["N"])
        if decayed.dtype != torch.float64 or not decayed.is_contiguous():
            raise ValueError(f"decayed must be float64 and contiguous, got {decayed.dtype}")
        check_same_device(table=table, decayed=decayed)
    if not table.is_contiguous():
        raise ValueError("table must be contiguous. hint: pass table.contiguous()")
    check_same_device(table=table, gradient=gradient.scale)
    for entries in gradient.entries:
        check_entries(entries, sizes["N"])
    narrow = table.dtype in (torch.bfloat16, torch.float16)
    if master is not None and not narrow:
        raise ValueError(f"master is for bfloat16 and float16 tables, got {table.dtype}")
    if seed is not None and table.dtype != torch.bfloat16:
        raise ValueError(f"seed is for bfloat16 tables, got {table.dtype}")
    if seed is not None and seed < 0:
        raise ValueError(f"seed must be >= 0, got {seed}")
    if master is not None:
        if seed is not None:
            raise ValueError(
                "pass master or seed, not both: a master copy needs no stochastic rounding"
            )
        _check_state("master", master, table, rowwise=False)


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
    check_same_device(table=table, **{name: state})


_FACTORS = "Tensor[] entries, Tensor[] weights, Tensor[] vectors, Tensor scale"
_COMMON = f"{_FACTORS}, Tensor(d!) decayed, Tensor(e!) master, float decay_total, float lr"
torch.library.define(
    "memory_layers::row_adamw_",
    f"(Tensor(a!) table, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, {_COMMON}, "
    "float beta1, float beta2, float eps, int step, int seed, str impl) -> ()",
)
torch.library.define(
    "memory_layers::row_sgd_", f"(Tensor(a!) table, {_COMMON}, int seed, str impl) -> ()"
)
torch.library.define(
    "memory_layers::row_adagrad_",
    f"(Tensor(a!) table, Tensor(b!) square_sum, {_COMMON}, float eps, int seed, str impl) -> ()",
)


@torch.library.impl("memory_layers::row_adamw_", ("cpu", "cuda"))
def _row_adamw_(
    table: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    entries: list[Tensor],
    weights: list[Tensor],
    vectors: list[Tensor],
    scale: Tensor,
    decayed: Tensor,
    master: Tensor,
    decay_total: float,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    step: int,
    seed: int,
    impl: str,
) -> None:
    ops = kernels("write", impl, "row_adamw_", table, *weights, *vectors)
    ops.row_adamw_(
        table,
        exp_avg,
        exp_avg_sq,
        (entries, weights, vectors, scale),
        decayed,
        master,
        decay_total=decay_total,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        step=step,
        seed=seed,
    )


@torch.library.impl("memory_layers::row_sgd_", ("cpu", "cuda"))
def _row_sgd_(
    table: Tensor,
    entries: list[Tensor],
    weights: list[Tensor],
    vectors: list[Tensor],
    scale: Tensor,
    decayed: Tensor,
    master: Tensor,
    decay_total: float,
    lr: float,
    seed: int,
    impl: str,
) -> None:
    ops = kernels("write", impl, "row_sgd_", table, *weights, *vectors)
    factors = (entries, weights, vectors, scale)
    ops.row_sgd_(table, factors, decayed, master, decay_total=decay_total, lr=lr, seed=seed)


@torch.library.impl("memory_layers::row_adagrad_", ("cpu", "cuda"))
def _row_adagrad_(
    table: Tensor,
    square_sum: Tensor,
    entries: list[Tensor],
    weights: list[Tensor],
    vectors: list[Tensor],
    scale: Tensor,
    decayed: Tensor,
    master: Tensor,
    decay_total: float,
    lr: float,
    eps: float,
    seed: int,
    impl: str,
) -> None:
    ops = kernels("write", impl, "row_adagrad_", table, *weights, *vectors)
    factors = (entries, weights, vectors, scale)
    numbers = {"decay_total": decay_total, "lr": lr, "eps": eps, "seed": seed}
    ops.row_adagrad_(table, square_sum, factors, decayed, master, **numbers)


@torch.library.register_fake("memory_layers::row_adamw_")
def _(*_args: object) -> None:
    return None


@torch.library.register_fake("memory_layers::row_sgd_")
def _(*_args: object) -> None:
    return None


@torch.library.register_fake("memory_layers::row_adagrad_")
def _(*_args: object) -> None:
    return None
