"""READ: `gather_sum` and `gather_dot`, each the other's adjoint, and `scatter_sum`.

The gradient of gather_sum with respect to its weights is gather_dot, the gradient of gather_dot
with respect to x is gather_sum, and the gradient of both with respect to the table is scatter_sum,
whose own gradients are gather_dot and gather_sum. So these three are closed under differentiation.
scatter_sum writes a whole [N, V] tensor: layers/values.py avoids it by keeping the factors.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from memory_layers.ops.dispatch import (
    Impl,
    check_floating,
    check_integer,
    check_rows,
    check_same_device,
    kernels,
    no_autocast,
    sum_dtype,
)
from memory_layers.shapes import check_shape


def gather_sum(table: Tensor, slots: Tensor, weights: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Read J rows per token and add them up, weighted.

    out[t] = sum_j weights[t, j] * table[slots[t, j]]           (arXiv 2412.09764 eq. 1, y = s V_I)

    Args:
        table: [N, V], one row per slot. fp32 and bf16 have a kernel.
        slots: [T, J] row numbers in [0, N), int32 or int64. A slot named twice counts twice.
        weights: [T, J], any sign, not normalised here.
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.

    Returns:
        [T, V], summed in fp32 (or fp64), in the wider type of `table` and `weights`.

    Gradients:
        table: scatter_sum(slots, weights, d_out), a dense [N, V] tensor.
        weights: gather_dot(table, slots, d_out).

    Cost:
        Reads T * J * V numbers. The kernel makes no [T, J, V] tensor.

    Raises:
        ValueError: Shapes, types or devices disagree, a slot is out of range (checked on the
            CPU), or `impl` does not support these inputs.
    """
    check_shape("table", table, "N V")
    check_shape("weights", weights, "T J", **check_shape("slots", slots, "T J"))
    check_integer("slots", slots)
    check_floating(table=table, weights=weights)
    check_same_device(table=table, slots=slots, weights=weights)
    return torch.ops.memory_layers.gather_sum(table, slots, weights, impl)


def gather_dot(table: Tensor, slots: Tensor, x: Tensor, *, impl: Impl = "auto") -> Tensor:
    """Take the dot product of each token with the J rows it names.

    out[t, j] = table[slots[t, j]] . x[t]                       (arXiv 2407.04153, the u of PEER)

    Args:
        table: [N, V], one row per slot. fp32 and bf16 have a kernel.
        slots: [T, J] row numbers in [0, N), int32 or int64.
        x: [T, V], one vector per token.
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.

    Returns:
        [T, J] in fp32 (fp64 if an input is).

    Gradients:
        table: scatter_sum(slots, d_out, x), a dense [N, V] tensor.
        x: gather_sum(table, slots, d_out).

    Cost:
        Reads T * J * V numbers. The kernel makes no [T, J, V] tensor.

    Raises:
        ValueError: As for gather_sum.
    """
    sizes = check_shape("table", table, "N V")
    tokens = check_shape("slots", slots, "T J")["T"]
    check_shape("x", x, "T V", T=tokens, V=sizes["V"])
    check_integer("slots", slots)
    check_floating(table=table, x=x)
    check_same_device(table=table, slots=slots, x=x)
    return torch.ops.memory_layers.gather_dot(table, slots, x, impl)


def scatter_sum(
    slots: Tensor, weights: Tensor, x: Tensor, num_rows: int, *, impl: Impl = "auto"
) -> Tensor:
    """Multiply the factors of a table gradient out.

    out[n] = sum of weights[t, j] * x[t] over all (t, j) with slots[t, j] = n

    Args:
        slots: [T, J] row numbers in [0, num_rows), int32 or int64.
        weights: [T, J].
        x: [T, V], one vector per token.
        num_rows: N, rows of the result.
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.

    Returns:
        [N, V] in fp32 (fp64 if an input is).

    Gradients:
        weights: gather_dot(d_out, slots, x).
        x: gather_sum(d_out, slots, weights).

    Cost:
        Writes N * V numbers.

    Raises:
        ValueError: As for gather_sum.
    """
    sizes = check_shape("weights", weights, "T J", **check_shape("slots", slots, "T J"))
    check_shape("x", x, "T V", T=sizes["T"])
    check_integer("slots", slots)
    check_floating(weights=weights, x=x)
    check_same_device(slots=slots, weights=weights, x=x)
    return torch.ops.memory_layers.scatter_sum(slots, weights, x, num_rows, impl)


torch.library.define(
    "memory_layers::gather_sum", "(Tensor table, Tensor slots, Tensor weights, str impl) -> Tensor"
)
torch.library.define(
    "memory_layers::gather_dot", "(Tensor table, Tensor slots, Tensor x, str impl) -> Tensor"
)
torch.library.define(
    "memory_layers::scatter_sum",
    "(Tensor slots, Tensor weights, Tensor x, SymInt num_rows, str impl) -> Tensor",
)


@torch.library.impl("memory_layers::gather_sum", ("cpu", "cuda"))
def _gather_sum(table: Tensor, slots: Tensor, weights: Tensor, impl: str) -> Tensor:
    # Here and not in the public function: looking at data would break torch.compile's graph.
    check_rows("slots", slots, table.shape[0])
    with no_autocast(table.device.type):
        ops = kernels("read", impl, "gather_sum", table, weights)
        return ops.gather_sum(table, slots, weights)


@torch.library.impl("memory_layers::gather_dot", ("cpu", "cuda"))
def _gather_dot(table: Tensor, slots: Tensor, x: Tensor, impl: str) -> Tensor:
    check_rows("slots", slots, table.shape[0])
    with no_autocast(table.device.type):
        return kernels("read", impl, "gather_dot", table, x).gather_dot(table, slots, x)


@torch.library.impl("memory_layers::scatter_sum", ("cpu", "cuda"))
def _scatter_sum(slots: Tensor, weights: Tensor, x: Tensor, num_rows: int, impl: str) -> Tensor:
    check_rows("slots", slots, num_rows)
    ops = kernels("read", impl, "scatter_sum", weights, x)
    return ops.scatter_sum(slots, weights, x, num_rows)


@torch.library.register_fake("memory_layers::gather_sum")
def _(table: Tensor, slots: Tensor, weights: Tensor, impl: str) -> Tensor:
    dtype = torch.promote_types(table.dtype, weights.dtype)
    return table.new_empty(slots.shape[0], table.shape[1], dtype=dtype)


@torch.library.register_fake("memory_layers::gather_dot")
def _(table: Tensor, slots: Tensor, x: Tensor, impl: str) -> Tensor:
    return x.new_empty(slots.shape, dtype=sum_dtype(table, x))


@torch.library.register_fake("memory_layers::scatter_sum")
def _(slots: Tensor, weights: Tensor, x: Tensor, num_rows: int, impl: str) -> Tensor:
    return x.new_empty(num_rows, x.shape[1], dtype=sum_dtype(weights, x))


def _save(ctx, inputs: tuple, output: Tensor) -> None:  # noqa: ANN001
    ctx.save_for_backward(*inputs[:3])
    ctx.impl = inputs[-1]


def _gather_sum_backward(ctx, d_out: Tensor) -> tuple:  # noqa: ANN001
    table, slots, weights = ctx.saved_tensors
    adjoint = torch.ops.memory_layers.gather_dot
    return _gather_backward(ctx, d_out, table, slots, weights, (weights, d_out), adjoint)


def _gather_dot_backward(ctx, d_out: Tensor) -> tuple:  # noqa: ANN001
    table, slots, x = ctx.saved_tensors
    adjoint = torch.ops.memory_layers.gather_sum
    return _gather_backward(ctx, d_out, table, slots, x, (d_out, x), adjoint)


def _gather_backward(
    ctx,  # noqa: ANN001
    d_out: Tensor,
    table: Tensor,
    slots: Tensor,
    token_side: Tensor,
    factors: tuple,
    adjoint: Callable,
) -> tuple:
    needs_table, _, needs_token_side, _ = ctx.needs_input_grad
    d_table = d_token_side = None
    if needs_table:
        scatter_sum = torch.ops.memory_layers.scatter_sum
        d_table = scatter_sum(slots, *factors, table.shape[0], ctx.impl).to(table.dtype)
    if needs_token_side:
        d_token_side = adjoint(table, slots, d_out, ctx.impl).to(token_side.dtype)
    return d_table, None, d_token_side, None


def _scatter_sum_backward(ctx, d_out: Tensor) -> tuple:  # noqa: ANN001
    slots, weights, x = ctx.saved_tensors
    _, needs_weights, needs_x, _, _ = ctx.needs_input_grad
    ops = torch.ops.memory_layers
    d_weights = d_x = None
    if needs_weights:
        d_weights = ops.gather_dot(d_out, slots, x, ctx.impl).to(weights.dtype)
    if needs_x:
        d_x = ops.gather_sum(d_out, slots, weights, ctx.impl).to(x.dtype)
    return None, d_weights, d_x, None, None


for _name, _backward in (
    ("gather_sum", _gather_sum_backward),
    ("gather_dot", _gather_dot_backward),
    ("scatter_sum", _scatter_sum_backward),
):
    torch.library.register_autograd(f"memory_layers::{_name}", _backward, setup_context=_save)
