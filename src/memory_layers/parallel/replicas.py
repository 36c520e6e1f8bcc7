"""What the replicas of a table exchange before a step: factors or dense sums, the smaller."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from memory_layers.layers.pending import PendingReads
from memory_layers.ops.write import RowGradient, group_by_row, row_sums
from memory_layers.ops.write.entries import PLACE_BITS, PLACE_MASK
from memory_layers.parallel.collectives import Group, start_gather, start_maximum, start_sum, wait


def add_replicas(pending: PendingReads, num_rows: int, group: Group) -> None:
    """Make the pending list of each replica the sum of all: the same list on each, in one order.

    Args:
        pending: Of this replica. All replicas have made reads of the same shapes.
        num_rows: N.
        group: The replicas.
    """
    gradient = pending.row_gradient()
    if gradient is None or pending.is_reduced:
        return
    factors, sums = exchange_bytes(gradient, num_rows, group.size)
    joined = _gather_factors if factors <= sums else _add_sums
    pending.replace(joined(gradient, num_rows, group))


def add_padded_replicas(pending: PendingReads, num_rows: int, group: Group) -> None:
    """As `add_replicas`, for replicas whose reads may differ in their tokens, not in number or J.

    Factors travel as long as the longest of all, and what was added goes when they have arrived.
    """
    gradient = pending.row_gradient()
    if gradient is None or pending.is_reduced:
        return
    device = gradient.weights[0].device
    own = torch.tensor([[len(weights) for weights in gradient.weights]], device=device)
    lengths = wait(start_gather(own, group)).tolist()
    longest = [max(read) for read in zip(*lengths, strict=True)]
    factors, sums = exchange_bytes(gradient, num_rows, group.size, tokens=longest)
    if factors <= sums:
        pending.replace(_gather_factors(gradient, num_rows, group, lengths=lengths))
    else:
        pending.replace(_add_sums(gradient, num_rows, group))


def add_unequal_replicas(pending: PendingReads, table: Tensor, group: Group) -> None:
    """As `add_replicas`, for replicas whose reads may differ in shape: dense sums.

    Args:
        pending: Of this replica.
        table: [N, V].
        group: The replicas.
    """
    gradient = pending.row_gradient()
    if pending.is_reduced:
        return
    if gradient is None:
        none = table.new_empty(0, 1)
        gradient = group_by_row(none.long(), none, table.new_empty(0, table.shape[1]))
    pending.replace(_add_sums(gradient, len(table), group))


def exchange_bytes(
    gradient: RowGradient, num_rows: int, replicas: int, *, tokens: Sequence[int] | None = None
) -> tuple[float, float]:
    """Return the bytes that a replica sends either way, known from sizes alone.

    Args:
        gradient: Pending factors.
        num_rows: N.
        replicas: Number of replicas.
        tokens: T with which each read travels. None: its own.

    Returns:
        factors: Each to all others: slots int32, weights and vectors as they are.
        sums: [N, width] fp32 and a byte a row, in a ring.
    """
    if tokens is None:
        tokens = [len(weights) for weights in gradient.weights]
    own = sum(
        count
        * (
            weights.shape[1] * (4 + weights.element_size())
            + vectors.shape[1] * vectors.element_size()
        )
        for count, weights, vectors in zip(tokens, gradient.weights, gradient.vectors, strict=True)
    )
    width = gradient.vectors[0].shape[1]
    sums = num_rows * (4 * width + 1)
    return (replicas - 1) * own, 2 * (replicas - 1) / replicas * sums


def _gather_factors(
    gradient: RowGradient,
    _num_rows: int,
    group: Group,
    *,
    lengths: Sequence[Sequence[int]] | None = None,
) -> RowGradient:
    """Join the reads of all ranks. `lengths`: tokens of each read of each rank, if not equal."""
    started = []
    reads = zip(gradient.entries, gradient.weights, gradient.vectors, strict=True)
    for number, (entries, weights, vectors) in enumerate(reads):
        slots = torch.empty(entries.numel(), dtype=torch.int32, device=entries.device)
        slots[entries & PLACE_MASK] = (entries >> PLACE_BITS).int()
        parts = (slots.view(weights.shape), weights, vectors)
        if lengths is not None:
            longest = max(own[number] for own in lengths)
            parts = tuple(F.pad(part, (0, 0, 0, longest - len(part))) for part in parts)
        started.append([start_gather(part, group) for part in parts])
    joined = None
    for number, parts in enumerate(started):
        gathered = zip(*(wait(part).chunk(group.size) for part in parts), strict=True)
        for rank, factors in enumerate(gathered):
            kept = slice(None if lengths is None else lengths[rank][number])
            read = group_by_row(*(factor[kept] for factor in factors))
            joined = read if joined is None else joined.joined(read)
    assert joined is not None
    return joined


def _add_sums(gradient: RowGradient, num_rows: int, group: Group) -> RowGradient:
    rows, own = row_sums(gradient)
    sums = own.new_zeros(num_rows, own.shape[1])
    sums[rows] = own
    # A row that was read with a weight of zero counts as touched: its moments decay.
    touched = torch.zeros(num_rows, dtype=torch.uint8, device=rows.device)
    touched[rows] = 1
    started = start_sum(sums, group), start_maximum(touched, group)
    sums, touched = wait(started[0]), wait(started[1])
    rows = touched.nonzero()
    ones = torch.ones(len(rows), 1, device=rows.device)
    return group_by_row(rows, ones, _rows_of(sums, rows))


def _rows_of(sums: Tensor, rows: Tensor) -> Tensor:
    return sums[rows[:, 0]]
