"""The four ways in which a width-sharded read exchanges data within its memory group.

Each is started here and waited for where its result is needed, so that work in between overlaps
with it. They are torch's functional collectives: torch's tracers see and count them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

_OPS = torch.ops._c10d_functional


@dataclass(frozen=True)
class Group:
    """A process group, by the name that torch's functional collectives know it by.

    Attributes:
        name: Of the group.
        size: G, its ranks.
        rank: Of this process in it.
    """

    name: str
    size: int
    rank: int

    @classmethod
    def of(cls, group: dist.ProcessGroup) -> "Group":
        """Describe a process group of torch.distributed."""
        return cls(group.group_name, dist.get_world_size(group), dist.get_rank(group))


def wait(started: Tensor) -> Tensor:
    """Wait for a collective and return its result."""
    return _OPS.wait_tensor(started)


def start_gather(own: Tensor, group: Group) -> Tensor:
    """[T, …] of each rank → [G * T, …] on every rank, in the order of the ranks."""
    return _OPS.all_gather_into_tensor(own.contiguous(), group.size, group.name)


def start_sum_to_owners(partial: Tensor, group: Group) -> Tensor:
    """[G * T, …] of each rank → the sum over the ranks of the T rows that are one's own."""
    return _OPS.reduce_scatter_tensor(partial.contiguous(), "sum", group.size, group.name)


def start_columns_to_owners(columns: Tensor, widths: Sequence[int], group: Group) -> Tensor:
    """Send each rank the rows of its tokens: see `join_columns` for what arrives.

    Args:
        columns: [G * T, width of this rank].
        widths: Columns that each rank has.
        group: The memory group.
    """
    tokens = columns.shape[0] // group.size
    sent = [tokens * widths[group.rank]] * group.size
    received = [tokens * width for width in widths]
    return _OPS.all_to_all_single(columns.contiguous().flatten(), received, sent, group.name)


def join_columns(arrived: Tensor, widths: Sequence[int]) -> Tensor:
    """Make [T, V] of what start_columns_to_owners brought: one part [T, width] a rank."""
    tokens = arrived.numel() // sum(widths)
    parts = arrived.split([tokens * width for width in widths])
    return torch.cat([part.view(tokens, width) for part, width in zip(parts, widths, strict=True)], 1)


def start_rows_to_columns(rows: Tensor, widths: Sequence[int], group: Group) -> Tensor:
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
    return _OPS.all_to_all_single(flat, received, sent, group.name)


def start_sum(values: Tensor, group: Group) -> Tensor:
    """Start adding up a tensor over all ranks."""
    return _OPS.all_reduce(values, "sum", group.name)


def start_maximum(values: Tensor, group: Group) -> Tensor:
    """Start taking the largest of a tensor over all ranks."""
    return _OPS.all_reduce(values, "max", group.name)
