"""The four ways in which a width-sharded read exchanges data within its memory group.

Each is started here and waited for where its result is needed, so that work in between overlaps
with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

# Their names since torch 2.13, which warns of the older ones.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Group:
    """A process group with its size and rank.

    Attributes:
        group: Of torch.distributed.
        size: G, its ranks.
        rank: Of this process in it.
    """

    group: dist.ProcessGroup
    size: int
    rank: int

    @classmethod
    def of(cls, group: dist.ProcessGroup) -> "Group":
        """Describe a process group of torch.distributed."""
        return cls(group, dist.get_world_size(group), dist.get_rank(group))


@dataclass(frozen=True)
class Started:
    """A collective that has been started.

    Attributes:
        work: Handle to wait on.
        result: Not to be read before `wait`.
        sent: Kept alive until then.
    """

    work: dist.Work
    result: Tensor
    sent: Tensor


def wait(started: Started) -> Tensor:
    """Wait for a collective and return its result."""
    started.work.wait()
    return started.result


def start_gather(own: Tensor, group: Group) -> Started:
    """[T, …] of each rank → [G * T, …] on every rank, in the order of the ranks."""
    own = own.contiguous()
    result = own.new_empty(group.size * own.shape[0], *own.shape[1:])
    work = _all_gather(result, own, group=group.group, async_op=True)
    return Started(work, result, own)


def start_sum_to_owners(partial: Tensor, group: Group) -> Started:
    """[G * T, …] of each rank → the sum over the ranks of the T rows that are one's own."""
    partial = partial.contiguous()
    result = partial.new_empty(partial.shape[0] // group.size, *partial.shape[1:])
    work = _reduce_scatter(result, partial, group=group.group, async_op=True)
    return Started(work, result, partial)


def start_columns_to_owners(columns: Tensor, widths: Sequence[int], group: Group) -> Started:
    """Send each rank the rows of its tokens: see `join_columns` for what arrives.

    Args:
        columns: [G * T, width of this rank].
        widths: Columns that each rank has.
        group: The memory group.
    """
    tokens = columns.shape[0] // group.size
    sent = [tokens * widths[group.rank]] * group.size
    received = [tokens * width for width in widths]
    return _start_exchange(columns.flatten(), received, sent, group)


def join_columns(arrived: Tensor, widths: Sequence[int]) -> Tensor:
    """Make [T, V] of what start_columns_to_owners brought: one part [T, width] a rank."""
    tokens = arrived.numel() // sum(widths)
    parts = arrived.split([tokens * width for width in widths])
    return torch.cat(
        [part.view(tokens, width) for part, width in zip(parts, widths, strict=True)], 1
    )


def start_rows_to_columns(rows: Tensor, widths: Sequence[int], group: Group) -> Started:
    """[T, V] of each rank → a flat [G * T * width], the columns of this rank for all tokens.

    Args:
        rows: [T, V] of this rank's tokens.
        widths: Columns that each rank has.
        group: The memory group.
    """
    tokens = rows.shape[0]
    sent = [tokens * width for width in widths]
    received = [tokens * widths[group.rank]] * group.size
    flat = torch.cat([part.flatten() for part in rows.split(list(widths), 1)])
    return _start_exchange(flat, received, sent, group)


def start_sum(values: Tensor, group: Group) -> Started:
    """Start adding up a tensor over all ranks. The result takes its place."""
    work = dist.all_reduce(values, group=group.group, async_op=True)
    return Started(work, values, values)


def start_maximum(values: Tensor, group: Group) -> Started:
    """Start taking the largest of a tensor over all ranks. The result takes its place."""
    work = dist.all_reduce(values, dist.ReduceOp.MAX, group=group.group, async_op=True)
    return Started(work, values, values)


def _start_exchange(flat: Tensor, received: list[int], sent: list[int], group: Group) -> Started:
    result = flat.new_empty(sum(received))
    work = dist.all_to_all_single(result, flat, received, sent, group=group.group, async_op=True)
    return Started(work, result, flat)
