"""ValueTable: the rows that read.py reads. Calls ops.read."""

import weakref
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from memory_layers.config.memory import value_init_std
from memory_layers.layers.draw import draw_normal
from memory_layers.layers.factored import FactoredGradient
from memory_layers.layers.pending import FOLD_BYTES, PendingReads, by_row
from memory_layers.ops.huge_pages import advise_huge_pages
from memory_layers.ops.read import gather_dot, gather_sum, scatter_sum
from memory_layers.ops.write import RowGradient


class ValueTable(nn.Module):
    """N rows of width V, read as weighted sums or as dot products. Layers may share one table.

    A backward pass leaves a gradient in `weight.grad`, which is

    - dense by default, as that of nn.Embedding, for any optimizer;
    - a sparse COO tensor with `sparse=True`, for torch.optim.SparseAdam;
    - a FactoredGradient while an optimizer like MemoryAdamW has claimed the table: the product of
      two small factors, which is not multiplied out.

    All three are the same gradient. The transforms of torch.func (grad, vmap, jvp) do not see
    through a read.

    Args:
        num_slots: N.
        value_dim: V.
        init_std: Standard deviation of the initial values. None: 0.02 * V ** -0.5.
        sparse: Leave sparse gradients.
        dtype: Storage type of the rows.

    Attributes:
        exchange: Called with a gradient by row and `weight`, adds up those of all replicas of the
            table. None: there are none.
        fold_bytes: Size beyond which the factors of a gradient are folded.
    """

    sparse = False
    exchange: Callable[..., RowGradient | None] | None = None
    fold_bytes = FOLD_BYTES
    _claims = 0

    def __init__(
        self,
        num_slots: int,
        value_dim: int,
        *,
        init_std: float | None = None,
        sparse: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.init_std = value_init_std(value_dim) if init_std is None else init_std
        self.sparse = sparse
        rows = torch.empty(num_slots, value_dim, dtype=dtype)
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

    def forward(self, slots: Tensor, weights: Tensor, *, dot: bool = False) -> Tensor:
        """[T, J] slots and weights → [T, V], in the wider type of the table and the weights.

        With `dot`, `weights` are the x of `self.dot`.
        """
        return self._read(gather_dot if dot else gather_sum, slots, weights)

    def dot(self, slots: Tensor, x: Tensor) -> Tensor:
        """[T, J] slots and [T, V] → [T, J], the product of each token with its rows, in fp32."""
        # A call, not a method alone: hooks such as accelerate's fetch a weight that is offloaded.
        return self(slots, x, dot=True)

    @property
    def leaves_factors(self) -> bool:
        """Whether a backward pass leaves a FactoredGradient."""
        # A computed weight, such as that of a replica in nn.DataParallel, has no .grad of its own.
        return (self._claims > 0 or self.exchange is not None) and self.weight.is_leaf

    def claim(self, owner: object) -> None:
        """Leave factors for an optimizer that knows them, for as long as it lives."""
        self._claims += 1
        weakref.finalize(owner, _release, weakref.ref(self)).atexit = False

    def row_gradient(self) -> RowGradient | None:
        """Return the gradient in `weight.grad`, of any kind, by row. None when there is none.

        Replicas of the table are added up: all of them must call this.
        """
        grad = self.weight.grad
        if grad is None and self.exchange is not None:
            # Other replicas may have read something.
            grad = FactoredGradient(self.new_reads(), self.weight)
            self.weight.grad = grad
        if isinstance(grad, FactoredGradient):
            return grad.reads.row_gradient()
        return None if grad is None else by_row(grad)

    def _read(self, product: Callable[..., Tensor], slots: Tensor, token_side: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not (self.sparse or self.leaves_factors):
            return product(self.weight, slots, token_side)
        read = _FactoredProduct.apply
        if torch.compiler.is_compiling():
            # Neither factors nor a sparse gradient can be compiled.
            # Not a decorator: that would load the compiler whenever this package is imported.
            read = torch.compiler.disable(read)
        return read(self.weight, slots, token_side, self, product)

    def new_reads(self) -> PendingReads:
        """Return an empty list for the reads of a backward pass."""
        if self.exchange is None:
            return PendingReads(self.fold_bytes)
        return PendingReads(self.fold_bytes, partial(self.exchange, weight=self.weight.detach()))

    def gradient_of_read(self, slots: Tensor, weights: Tensor, vectors: Tensor) -> Tensor:
        """Return the gradient of the weight that one read leaves, from its factors.

        Args:
            slots: [T, J] row numbers.
            weights: [T, J].
            vectors: [T, width of `weight`].
        """
        reads = self.new_reads()
        reads.append(slots, weights, vectors)
        gradient = FactoredGradient(reads, self.weight)
        if self.leaves_factors:
            return gradient
        return gradient.to_sparse() if self.sparse else gradient.to_dense()

    def mark_weight(self) -> None:
        """Let optimizers find the table of its weight: see `table_of`."""
        weight = self._parameters.get("weight")
        # The weight of a shallow copy, or a tied one, stays with the table that has it already.
        if weight is not None and table_of(weight) is None:
            setattr(weight, "_table_of", _TableOf(self))  # noqa: B010  (no field of Parameter)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter, and let optimizers find the table that it belongs to."""
        super().register_parameter(name, param)
        self.mark_weight()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.mark_weight()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickle and deepcopy need: a copy has no optimizer and no replicas."""
        own = ("_claims", "exchange")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what pickle or deepcopy has made a copy of."""
        super().__setstate__(state)
        self.mark_weight()

    def extra_repr(self) -> str:
        """Show the sizes in print(model)."""
        num_slots, value_dim = self.weight.shape
        sparse = ", sparse=True" if self.sparse else ""
        return f"num_slots={num_slots}, value_dim={value_dim}{sparse}"


class _TableOf:
    """What the weight of a table knows of its module: a reference that keeps nothing alive.

    Pickle puts an empty OrderedDict in its place, which torch.load accepts with weights_only.
    """

    def __init__(self, table: ValueTable) -> None:
        self.table = weakref.ref(table)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return OrderedDict, ()


def table_of(parameter: Tensor) -> ValueTable | None:
    """Return the table that a parameter is the weight of, None for others.

    A parameter that does not know its table, such as one that was written into `_parameters` of the
    module, trains as any other: its gradient is dense.
    """
    mark = getattr(parameter, "_table_of", None)
    table = mark.table() if isinstance(mark, _TableOf) else None
    return table if table is not None and table.weight is parameter else None


def _release(reference: "weakref.ref[ValueTable]") -> None:
    table = reference()
    if table is not None:
        table._claims -= 1  # noqa: SLF001


class _FactoredProduct(torch.autograd.Function):
    """gather_sum or gather_dot, each the other's adjoint, whose table gradient stays factored."""

    @staticmethod
    def forward(ctx, weight, slots, token_side, table, product):  # noqa: ANN001, ANN205
        ctx.save_for_backward(weight, slots, token_side)
        ctx.table, ctx.is_sum = table, product is gather_sum
        return product(weight, slots, token_side)

    @staticmethod
    def backward(ctx: Any, *d_outs: Tensor) -> Any:  # noqa: ANN401
        (d_out,), (weight, slots, token_side) = d_outs, ctx.saved_tensors
        d_weight = d_token_side = None
        if ctx.needs_input_grad[0]:
            # dTable = sum over t, j of weights[t, j] vectors[t], in row slots[t, j].
            weights, vectors = (token_side, d_out) if ctx.is_sum else (d_out, token_side)
            if torch.is_grad_enabled():
                # create_graph: what is differentiated again is a function, which factors are not.
                d_weight = scatter_sum(slots, weights, vectors, len(weight)).to(weight.dtype)
            else:
                d_weight = ctx.table.gradient_of_read(slots, weights, vectors)
        if ctx.needs_input_grad[2]:
            adjoint = gather_dot if ctx.is_sum else gather_sum
            d_token_side = _FactoredProduct.apply(weight, slots, d_out, ctx.table, adjoint)
            d_token_side = d_token_side.to(token_side.dtype)
        return d_weight, None, d_token_side, None, None
