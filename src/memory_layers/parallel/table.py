"""ShardedValueTable: the columns of a value table that one rank of a memory group holds.

Sharded by width (arXiv 2412.09764 section 3.1): the ranks of a memory group tell each other their
slots and weights, each reads all tokens on its own columns, and one exchange gives every rank the
whole rows of its own tokens. Next: replicas.py, for several memory groups.
"""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from memory_layers.layers import ValueTable
from memory_layers.layers.factored import FactoredGradient
from memory_layers.ops.read import gather_dot, gather_sum
from memory_layers.parallel.collectives import (
    Group,
    join_columns,
    start_columns_to_owners,
    start_gather,
    start_maximum,
    start_rows_to_columns,
    start_sum,
    start_sum_to_owners,
    wait,
)
from memory_layers.parallel.replicas import add_replicas


def shard_widths(value_dim: int, ranks: int) -> list[int]:
    """Cut V columns as torch.chunk and DTensor do: the last ranks may have fewer, or none."""
    most = -(-value_dim // ranks)
    return [max(0, min(most, value_dim - rank * most)) for rank in range(ranks)]


class ShardedValueTable(ValueTable):
    """A value table of which this rank holds some columns, `weight` [N, width].

    Reads, gradients and steps are those of the whole table. Its gradient is a FactoredGradient: a
    backward pass leaves the factors of all tokens of the memory group, for the own columns.

    In training each rank of the group must bring equally many tokens to a read, and all ranks must
    read the tables in the same order.

    Args:
        table: The whole table, on the meta device or the same on every rank.
        mesh: Axes replicas and memory, or one axis: the memory group.
        weights_dtype: Type in which weights travel. None: as they are.

    Raises:
        ValueError: The table is to leave sparse gradients.
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
        self.group = Group.of(mesh.get_group(mesh.ndim - 1))
        replicated = mesh.ndim > 1 and mesh.size(0) > 1
        self.replicas = Group.of(mesh.get_group(0)) if replicated else None
        if self.replicas is not None:
            # Folded lists would differ in length between replicas, which exchange them.
            self.fold_bytes = sys.maxsize
            self.exchange = partial(add_replicas, group=self.replicas)
        self.widths = shard_widths(table.value_dim, self.group.size)
        first = self.first_column
        columns = table.weight.detach()[:, first : first + self.widths[self.group.rank]]
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
        return sum(self.widths[: self.group.rank])

    @property
    def leaves_factors(self) -> bool:
        """Always: other ranks have the rest of the gradient."""
        return True

    def forward(self, slots: Tensor, weights: Tensor) -> Tensor:
        """[T, J] slots and weights of this rank's tokens → [T, V], as the whole table gives."""
        if torch.is_grad_enabled():
            self._check_tokens(slots)
            return _ShardedRead.apply(self.weight, slots, weights, self)
        # Texts to be evaluated have any length: ranks with fewer tokens bring empty ones.
        own = len(slots)
        missing = self._most_tokens(slots) - own
        slots = nn.functional.pad(slots, (0, 0, 0, missing))
        weights = nn.functional.pad(weights, (0, 0, 0, missing))
        return _read(self, self.weight, slots, weights)[0][:own]

    def dot(self, slots: Tensor, x: Tensor) -> Tensor:
        """[T, J] slots and [T, V] of this rank's tokens → [T, J], as the whole table gives."""
        if torch.is_grad_enabled():
            self._check_tokens(slots)
            return _ShardedDot.apply(self.weight, slots, x, self)
        own = len(slots)
        missing = self._most_tokens(slots) - own
        slots = nn.functional.pad(slots, (0, 0, 0, missing))
        x = nn.functional.pad(x, (0, 0, 0, missing))
        return _dot(self, self.weight, slots, x)[0][:own]

    def _most_tokens(self, slots: Tensor) -> int:
        own = torch.tensor([len(slots)], device=slots.device)
        return int(wait(start_maximum(own, self.group)))

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
        return wait(start_sum(values.clone(memory_format=torch.contiguous_format), self.group))

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
            f"columns={first}:{first + width}, memory_group={self.group.size}"
        )


def _read(
    table: ShardedValueTable, weight: Tensor, slots: Tensor, weights: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Read, and return slots and weights of the whole group for each half of the tokens.

    Halves, so that one travels while the other is read.
    """
    group, widths = table.group, table.widths
    slots, weights = slots.int(), weights.to(table.weights_dtype or weights.dtype)
    started = [
        (start_gather(some_slots, group), start_gather(some_weights, group))
        for some_slots, some_weights in zip(_halves(slots), _halves(weights), strict=True)
    ]
    gathered, reads = [], []
    for some_slots, some_weights in started:
        all_slots, all_weights = wait(some_slots), wait(some_weights)
        gathered += [all_slots, all_weights]
        columns = gather_sum(weight, all_slots, all_weights)
        reads.append(start_columns_to_owners(columns, widths, group))
    return torch.cat([join_columns(wait(read), widths) for read in reads]), gathered


class _ShardedRead(torch.autograd.Function):
    """Read a sharded table, and send the gradients the same ways back."""

    @staticmethod
    def forward(  # noqa: ANN205
        ctx: Any,  # noqa: ANN401
        weight: Tensor,
        slots: Tensor,
        weights: Tensor,
        table: ShardedValueTable,
    ):
        read, gathered = _read(table, weight, slots, weights)
        ctx.save_for_backward(weight, *gathered)
        ctx.table, ctx.weights_dtype = table, weights.dtype
        return read

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out):  # noqa: ANN001, ANN205
        table: ShardedValueTable = ctx.table
        group, widths = table.group, table.widths
        weight, *gathered = ctx.saved_tensors
        needs_table, _, needs_weights, _ = ctx.needs_input_grad
        started = [start_rows_to_columns(part, widths, group) for part in _halves(d_out)]
        d_weights = []
        reads = table.new_reads()
        for n, part in enumerate(started):
            all_slots, all_weights = gathered[2 * n], gathered[2 * n + 1]
            columns = wait(part).view(len(all_slots), widths[group.rank])
            if needs_weights:
                dots = torch.ops.memory_layers.gather_dot(weight, all_slots, columns, "auto")
                d_weights.append(start_sum_to_owners(dots, group))
            if needs_table:
                reads.append(all_slots, all_weights, columns)
        d_table = FactoredGradient(reads, weight) if needs_table else None
        if not needs_weights:
            return d_table, None, None, None
        joined = torch.cat([wait(part) for part in d_weights])
        return d_table, None, joined.to(ctx.weights_dtype), None


def _dot(
    table: ShardedValueTable, weight: Tensor, slots: Tensor, x: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Take dot products, the reverse of a read: x travels to the columns, partial sums come back.

    Also returns slots and columns of x of the whole group for each half of the tokens.
    """
    group, widths = table.group, table.widths
    started = [
        (start_gather(some_slots, group), start_rows_to_columns(some_x, widths, group))
        for some_slots, some_x in zip(_halves(slots.int()), _halves(x), strict=True)
    ]
    gathered, sums = [], []
    for some_slots, some_x in started:
        all_slots = wait(some_slots)
        columns = wait(some_x).view(len(all_slots), widths[group.rank])
        gathered += [all_slots, columns]
        sums.append(start_sum_to_owners(gather_dot(weight, all_slots, columns), group))
    return torch.cat([wait(part) for part in sums]), gathered


class _ShardedDot(torch.autograd.Function):
    """Take dot products with a sharded table, and send the gradients the same ways back."""

    @staticmethod
    def forward(  # noqa: ANN205
        ctx: Any,  # noqa: ANN401
        weight: Tensor,
        slots: Tensor,
        x: Tensor,
        table: ShardedValueTable,
    ):
        dots, gathered = _dot(table, weight, slots, x)
        ctx.save_for_backward(weight, *gathered)
        ctx.table, ctx.x_dtype = table, x.dtype
        return dots

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out):  # noqa: ANN001, ANN205
        table: ShardedValueTable = ctx.table
        group, widths = table.group, table.widths
        weight, *gathered = ctx.saved_tensors
        needs_table, _, needs_x, _ = ctx.needs_input_grad
        started = [start_gather(part, group) for part in _halves(d_out)]
        d_x = []
        reads = table.new_reads()
        for n, part in enumerate(started):
            all_slots, columns, all_d = gathered[2 * n], gathered[2 * n + 1], wait(part)
            if needs_x:
                own = torch.ops.memory_layers.gather_sum(weight, all_slots, all_d, "auto")
                d_x.append(start_columns_to_owners(own, widths, group))
            if needs_table:
                reads.append(all_slots, all_d, columns)
        d_table = FactoredGradient(reads, weight) if needs_table else None
        if not needs_x:
            return d_table, None, None, None
        joined = torch.cat([join_columns(wait(part), widths) for part in d_x])
        return d_table, None, joined.to(ctx.x_dtype), None


def _halves(tensor: Tensor) -> Sequence[Tensor]:
    return tensor.chunk(2)
