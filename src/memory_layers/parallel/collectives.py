"""Collectives of torch.distributed that are started here and waited for where they are needed.

Work in between overlaps with them. Four of them make a read of a table that is sharded by width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

# Their names since torch 2.13, which warns of the older ones.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Started:
    """A collective that has been started.

    Attributes:
        work: Handle to wait on.
        received: Not to be read before `wait`.
        sent: Kept alive until then.
        arrange: Makes the result of what was received. None: it is the result.
    """

    work: dist.Work
    received: Tensor
    sent: Tensor
    arrange: Callable[[Tensor], Tensor] | None = None

    def wait(self) -> Tensor:
        """Wait for the collective and return its result."""
        self.work.wait()
        return self.received if self.arrange is None else self.arrange(self.received)


def start_gather(own: Tensor, group: ProcessGroup) -> Started:
    """[T, …] of each rank → [G * T, …] on every rank, in the order of the ranks."""
    own = own.contiguous()
    result = own.new_empty(group.size() * own.shape[0], *own.shape[1:])
    return Started(_all_gather(result, own, group=group, async_op=True), result, own)


def start_sum_to_owners(partial: Tensor, group: ProcessGroup) -> Started:
    """[G * T, …] of each rank → the sum over the ranks of the T rows that are one's own."""
    partial = partial.contiguous()
    result = partial.new_empty(partial.shape[0] // group.size(), *partial.shape[1:])
    return Started(_reduce_scatter(result, partial, group=group, async_op=True), result, partial)


def start_columns_to_owners(columns: Tensor, widths: Sequence[int], group: ProcessGroup) -> Started:
    """[G * T, width] of each rank → [T, V], all columns of the T rows that are one's own.

    `widths` are those of all ranks.
    """
    tokens = columns.shape[0] // group.size()
    received = [tokens * width for width in widths]
    sent = [columns[:tokens].numel()] * group.size()

    def join(flat: Tensor) -> Tensor:
        parts = zip(flat.split(received), widths, strict=True)
        return torch.cat([part.view(tokens, width) for part, width in parts], 1)

    return _start_exchange(columns.flatten(), received, sent, group, join)


def start_rows_to_columns(rows: Tensor, widths: Sequence[int], group: ProcessGroup) -> Started:
    """[T, V] of each rank → [G * T, width], one's own columns for the tokens of all ranks.

    `widths` are those of all ranks.
    """
    tokens, width = len(rows), widths[group.rank()]
    sent = [tokens * width for width in widths]
    received = [tokens * width] * group.size()
    flat = torch.cat([part.flatten() for part in rows.split(list(widths), 1)])
    shape = (group.size() * tokens, width)
    return _start_exchange(flat, received, sent, group, lambda flat: flat.view(shape))


def _start_exchange(
    flat: Tensor,
    received: list[int],
    sent: list[int],
    group: ProcessGroup,
    arrange: Callable[[Tensor], Tensor],
) -> Started:
    result = flat.new_empty(sum(received))
    work = dist.all_to_all_single(result, flat, received, sent, group=group, async_op=True)
    return Started(work, result, flat, arrange)
