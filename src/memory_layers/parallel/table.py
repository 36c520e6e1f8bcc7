"""ShardedValueTable: the columns of a value table that one rank of a memory group holds.

Sharded by width (arXiv 2412.09764 section 3.1): the ranks of a memory group all-gather their slots
and weights, each reads its own columns for all tokens, and one all-to-all gives every rank the
whole rows of its own tokens. Next: replicas.py, for several memory groups.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from memory_layers.layers import ValueTable
from memory_layers.layers.factored import FactoredGradient
from memory_layers.ops.read import gather_dot, gather_sum
from memory_layers.parallel.collectives import (
    Started,
    start_columns_to_owners,
    start_gather,
    start_rows_to_columns,
    start_sum_to_owners,
)
from memory_layers.parallel.replicas import add_replicas


def shard_widths(value_dim: int, ranks: int) -> list[int]:
    """Cut V columns as torch.chunk and DTensor do: the last ranks may have fewer, or none."""
    most = -(-value_dim // ranks)
    return [max(0, min(most, value_dim - rank * most)) for rank in range(ranks)]


class ShardedValueTable(ValueTable):
    """A value table of which this rank holds some columns, `weight` [N, width].

    Reads, gradients and steps are those of the whole table. Its gradient is a FactoredGradient of
    these columns, for all tokens of the memory group.

    In training all ranks of the group must read for equally many tokens, and in the same order.

    Args:
        table: The whole table, on the meta device or the same on every rank.
        mesh: Axes replicas and memory, or one axis: the memory group.
        weights_dtype: Type in which weights travel. None: as they are.

    Raises:
        ValueError: The table leaves sparse gradients.
    """

    def __init__(
        self, table: ValueTable, mesh: DeviceMesh, weights_dtype: torch.dtype | None = None
    ) -> None:
        nn.Module.__init__(self)
        if table.sparse:
            raise ValueError(
                "a sharded table leaves no sparse gradient. hint: sparse=False, and MemoryAdamW"
            )
        self.init_std = table.init_std
        self.weights_dtype = weights_dtype
        self.mesh = mesh
        self.group = mesh.get_group(mesh.ndim - 1)
        if mesh.ndim > 1 and mesh.size(0) > 1:
            # Folded lists would differ in length between replicas, which exchange them.
            self.fold_bytes = sys.maxsize
            self.exchange = partial(add_replicas, group=mesh.get_group(0))
        self.widths = shard_widths(table.value_dim, self.group.size())
        first = self.first_column
        columns = table.weight.detach()[:, first : first + self.widths[self.group.rank()]]
        self.weight = nn.Parameter(
            columns.clone(memory_format=torch.contiguous_format),
            requires_grad=table.weight.requires_grad,
        )

    @property
    def value_dim(self) -> int:
        """V, all columns."""
        return sum(self.widths)

    @property
    def first_column(self) -> int:
        """Which of the V columns is the first of `weight`."""
        return sum(self.widths[: self.group.rank()])

    @property
    def leaves_factors(self) -> bool:
        """Always: other ranks have the rest of the gradient."""
        return True

    def forward(self, slots: Tensor, weights: Tensor, *, dot: bool = False) -> Tensor:
        """[T, J] slots and weights of this rank's tokens → [T, V], as the whole table gives."""
        return self._multiply(_DOT if dot else _SUM, slots, weights)

    def _multiply(self, product: "_Product", slots: Tensor, factor: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self._check_tokens(slots)
            return _ShardedProduct.apply(self.weight, slots, factor, self, product)
        # Texts to be evaluated have any length: ranks with fewer tokens add empty ones.
        missing = self._most_tokens(slots) - len(slots)
        padded = [nn.functional.pad(part, (0, 0, 0, missing)) for part in (slots, factor)]
        return _multiply(self, product, self.weight, *padded)[0][: len(slots)]

    def _most_tokens(self, slots: Tensor) -> int:
        own = torch.tensor([len(slots)], device=slots.device)
        dist.all_reduce(own, dist.ReduceOp.MAX, group=self.group)
        return int(own)

    def _check_tokens(self, slots: Tensor) -> None:
        """Refuse unequal numbers of tokens: on the CPU always, on a GPU in anomaly mode.

        The exchange would write beyond its buffers. Fake tensors have no numbers to compare.
        """
        looks = slots.device.type == "cpu" or torch.is_anomaly_enabled()
        if not looks or type(slots) is not Tensor:
            return
        most = self._most_tokens(slots)
        if most != len(slots):
            raise ValueError(
                f"all ranks of a memory group must bring equally many tokens to a read in "
                f"training, this one has {len(slots)}, another {most}. hint: give each rank as "
                "many rows of the same length, or evaluate under torch.no_grad()"
            )

    def sum_over_shards(self, values: Tensor) -> Tensor:
        """Add up numbers of all ranks of the memory group."""
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values, group=self.group)
        return values

    def global_view(self, tensor: Tensor, *, per_row: bool = False) -> Tensor:
        """Return a DTensor over the whole width, replicated for state of one number a row."""
        shape = tuple(tensor.shape) if per_row else (len(tensor), self.value_dim)
        placement = Replicate() if per_row else Shard(1)
        stride = (shape[1], 1) if len(shape) == 2 else (1,)
        placements = [*[Replicate()] * (self.mesh.ndim - 1), placement]
        return DTensor.from_local(
            tensor, self.mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
        )

    def extra_repr(self) -> str:
        """Show the sizes in print(model)."""
        first, width = self.first_column, self.weight.shape[1]
        return (
            f"num_slots={len(self.weight)}, value_dim={self.value_dim}, "
            f"columns={first}:{first + width}, memory_group={self.group.size()}"
        )


class _Product(NamedTuple):
    """A product of tokens with the rows of a sharded table. The two are each other's gradient.

    Attributes:
        multiply: On the columns of this rank, for the tokens of the group.
        send: Starts to send what each rank needs of the tokens.
        give_back: Starts to send each rank the results of its own tokens.
    """

    multiply: Callable[[Tensor, Tensor, Tensor], Tensor]
    send: Callable[[ShardedValueTable, Tensor], Started]
    give_back: Callable[[ShardedValueTable, Tensor], Started]


_SUM = _Product(
    gather_sum,
    lambda table, weights: start_gather(weights, table.group),
    lambda table, columns: start_columns_to_owners(columns, table.widths, table.group),
)
_DOT = _Product(
    gather_dot,
    lambda table, x: start_rows_to_columns(x, table.widths, table.group),
    lambda table, partial_dots: start_sum_to_owners(partial_dots, table.group),
)


def _multiply(
    table: ShardedValueTable, product: _Product, weight: Tensor, slots: Tensor, factor: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Multiply in two halves of the tokens, so that one travels while the other is read.

    Returns:
        The result for this rank's tokens, and slots and factor of the whole group for each half.
    """
    slots = slots.int()
    if product is _SUM:
        factor = factor.to(table.weights_dtype or factor.dtype)
    started = [
        (start_gather(some_slots, table.group), product.send(table, part))
        for some_slots, part in zip(slots.chunk(2), factor.chunk(2), strict=True)
    ]
    gathered, results = [], []
    for half in started:
        all_slots, arrived = (part.wait() for part in half)
        gathered += [all_slots, arrived]
        results.append(product.give_back(table, product.multiply(weight, all_slots, arrived)))
    return torch.cat([result.wait() for result in results]), gathered


class _ShardedProduct(torch.autograd.Function):
    """Multiply with a sharded table, and send the gradients the same ways back."""

    @staticmethod
    def forward(  # noqa: ANN205
        ctx: Any,  # noqa: ANN401
        weight: Tensor,
        slots: Tensor,
        factor: Tensor,
        table: ShardedValueTable,
        product: _Product,
    ):
        result, gathered = _multiply(table, product, weight, slots, factor)
        ctx.save_for_backward(weight, *gathered)
        ctx.table, ctx.product, ctx.dtype = table, product, factor.dtype
        return result

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out):  # noqa: ANN001, ANN205
        table: ShardedValueTable = ctx.table
        is_sum = ctx.product is _SUM
        adjoint = _DOT if is_sum else _SUM
        weight, *gathered = ctx.saved_tensors
        needs_table, _, needs_factor, *_ = ctx.needs_input_grad
        started = [adjoint.send(table, part) for part in d_out.chunk(2)]
        d_factor, reads = [], table.new_reads()
        for all_slots, factor, part in zip(gathered[::2], gathered[1::2], started, strict=True):
            d_part = part.wait()
            if needs_factor:
                own = adjoint.multiply(weight, all_slots, d_part)
                d_factor.append(adjoint.give_back(table, own))
            if needs_table:
                reads.append(all_slots, *((factor, d_part) if is_sum else (d_part, factor)))
        d_table = FactoredGradient(reads, weight) if needs_table else None
        if not needs_factor:
            return d_table, None, None, None, None
        joined = torch.cat([part.wait() for part in d_factor])
        return d_table, None, joined.to(ctx.dtype), None, None
