"""Step 3: slots and weights → read. ValueTable owns the rows, calls ops.read. Next: gate.py."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from memory_layers.config.memory import GradMode
from memory_layers.layers.draw import draw_normal
from memory_layers.layers.pending import PendingReads
from memory_layers.ops.huge_pages import advise_huge_pages
from memory_layers.ops.read import gather_dot, gather_sum

# So many reads that no optimizer waits for are no accident.
UNAWAITED_READS = 12


class ValueTable(nn.Module):
    """N rows of width V, read as weighted sums or as dot products. Layers may share one table.

    The gradient of the table is the product of two small factors. `grad_mode` says what a
    backward pass does with them:

    - "factored": appended to `pending`, for memory_layers.optim. `weight.grad` stays None.
    - "sparse": multiplied out for the touched rows, a sparse COO tensor in `weight.grad`.
    - "dense": multiplied out for all rows, an ordinary `weight.grad`.

    All three are the same gradient.

    Args:
        slots: N.
        value_dim: V.
        init_std: Standard deviation of the initial values.
        grad_mode: What a backward pass does with the gradient.
        dtype: Storage type of the rows.
    """

    def __init__(
        self,
        slots: int,
        value_dim: int,
        *,
        init_std: float,
        grad_mode: GradMode = "factored",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.init_std = init_std
        self.grad_mode = grad_mode
        self.pending = PendingReads()
        rows = torch.empty(slots, value_dim, dtype=dtype)
        advise_huge_pages(rows)
        self.weight = nn.Parameter(rows)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the rows from a normal distribution, seeded from torch's global generator."""
        # transformers marks what it has loaded, which is to be left alone.
        if not getattr(self.weight, "_is_hf_initialized", False):
            draw_normal(self.weight, self.init_std, self.first_column)

    @property
    def value_dim(self) -> int:
        """V. `weight` may hold fewer columns: memory_layers.parallel shards a table by width."""
        return self.weight.shape[1]

    @property
    def first_column(self) -> int:
        """Which of the V columns is the first of `weight`."""
        return 0

    def reduce_gradient(self) -> None:
        """Add up what the replicas of this table have pending. Here: there are none."""

    def sum_over_shards(self, values: Tensor) -> Tensor:
        """Add up numbers that each holder of some columns has for its own. Here: it has all."""
        return values

    def global_view(self, tensor: Tensor, *, per_row: bool = False) -> Tensor:
        """Return rows of the weight or of optimizer state as a checkpoint should see them.

        Args:
            tensor: [R, width of `weight`], or [R, 1] or [R] with `per_row`.
            per_row: The tensor has one number a row, which all holders of columns have alike.
        """
        del per_row
        return tensor

    def forward(self, slots: Tensor, weights: Tensor) -> Tensor:
        """[T, J] slots and weights → [T, V], in the wider type of the table and the weights."""
        return self._read(gather_sum, _FactoredRead, slots, weights)

    def dot(self, slots: Tensor, x: Tensor) -> Tensor:
        """[T, J] slots and [T, V] → [T, J], the product of each token with its rows, in fp32."""
        return self._read(gather_dot, _FactoredDot, slots, x)

    def _read(
        self,
        plain: Callable[..., Tensor],
        factored: type[torch.autograd.Function],
        slots: Tensor,
        token_side: Tensor,
    ) -> Tensor:
        if self.grad_mode == "dense" or not torch.is_grad_enabled():
            return plain(self.weight, slots, token_side)
        pending = self.pending if self.grad_mode == "factored" else None
        read = factored.apply
        if torch.compiler.is_compiling():
            # Neither a list that a backward pass appends to nor a sparse gradient can be compiled.
            # Not a decorator: that would load the compiler whenever this package is imported.
            read = torch.compiler.disable(read)
        return read(self.weight, slots, token_side, pending)

    def extra_repr(self) -> str:
        """Show the sizes in print(model)."""
        slots, value_dim = self.weight.shape
        return f"slots={slots}, value_dim={value_dim}, grad_mode={self.grad_mode}"


class _FactoredRead(torch.autograd.Function):
    """gather_sum whose table gradient stays factored, or becomes a sparse tensor."""

    @staticmethod
    def forward(ctx, table, slots, weights, pending):  # noqa: ANN001, ANN205
        ctx.save_for_backward(table, slots, weights)
        ctx.pending = pending
        return gather_sum(table, slots, weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out):  # noqa: ANN001, ANN205
        table, slots, weights = ctx.saved_tensors
        d_table = d_weights = None
        if ctx.needs_input_grad[0]:
            d_table = _table_gradient(table, ctx.pending, slots, weights, d_out)
        if ctx.needs_input_grad[2]:
            dots = torch.ops.memory_layers.gather_dot(table, slots, d_out, "auto")
            d_weights = dots.to(weights.dtype)
        return d_table, None, d_weights, None


class _FactoredDot(torch.autograd.Function):
    """gather_dot whose table gradient, dTable = sum of d_out[t, j] x[t], stays factored."""

    @staticmethod
    def forward(ctx, table, slots, x, pending):  # noqa: ANN001, ANN205
        ctx.save_for_backward(table, slots, x)
        ctx.pending = pending
        return gather_dot(table, slots, x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out):  # noqa: ANN001, ANN205
        table, slots, x = ctx.saved_tensors
        d_table = d_x = None
        if ctx.needs_input_grad[0]:
            d_table = _table_gradient(table, ctx.pending, slots, d_out, x)
        if ctx.needs_input_grad[2]:
            d_x = torch.ops.memory_layers.gather_sum(table, slots, d_out, "auto").to(x.dtype)
        return d_table, None, d_x, None


def _table_gradient(
    table: Tensor, pending: PendingReads | None, slots: Tensor, weights: Tensor, vectors: Tensor
) -> Tensor | None:
    """Leave the factors of a table gradient in a list, or return it as a sparse tensor."""
    if pending is not None:
        if not pending.is_awaited and len(pending) == UNAWAITED_READS:
            warnings.warn(
                "the gradients of a value table pile up, and no optimizer takes them: the table "
                "does not learn. hint: MemoryAdamW(model), trainers.memory_optimizer for "
                'transformers\' Trainer, or MemoryConfig(grad_mode="dense") for other optimizers',
                stacklevel=2,
            )
        pending.append(slots, weights, vectors)
        return None
    reads = PendingReads()
    reads.append(slots, weights, vectors)
    return reads.to_sparse(table)


class SinkValue(nn.Module):
    """The value that every token reads beside those of its slots. It is in no table.

    Args:
        value_dim: V.
        init_std: Standard deviation of the initial value.
    """

    def __init__(self, value_dim: int, init_std: float) -> None:
        super().__init__()
        self.init_std = init_std
        self.weight = nn.Parameter(torch.empty(value_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the value as those of a table."""
        nn.init.normal_(self.weight, std=self.init_std)

    def forward(self, read: Tensor, weights: Tensor) -> Tensor:
        """Add the value to [T, V] with [T, H] weights, of all heads."""
        return read + weights.sum(1, keepdim=True) * self.weight
