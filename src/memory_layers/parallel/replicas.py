"""What the replicas of a table exchange before a step: factors or dense sums, whichever is less."""

import zlib
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F  # noqa: N812

from memory_layers.layers.pending import from_rows
from memory_layers.ops.write import RowGradient, group_by_row, row_sums
from memory_layers.ops.write.entries import PLACE_BITS, PLACE_MASK
from memory_layers.parallel.collectives import start_gather


def add_replicas(
    gradient: RowGradient | None, weight: Tensor, group: ProcessGroup
) -> RowGradient | None:
    """Return the sum of the gradients of all replicas: the same on each, in one order.

    Args:
        gradient: Of this replica. All replicas have made reads of the same shapes.
        weight: [N, any width] of the table.
        group: The replicas.
    """
    if gradient is None:
        return None
    factors, sums = exchange_bytes(gradient, len(weight), group.size())
    if factors <= sums:
        return _gather_factors(gradient, group)
    return _add_sums(gradient, len(weight), group)


def average_replicas(
    gradient: RowGradient | None, weight: Tensor, group: ProcessGroup
) -> RowGradient:
    """Return the mean of the gradients of all replicas, whose reads may differ in shape.

    Batches that are padded to their own longest row differ in tokens. A rank that has read nothing,
    or folded its reads, has another number of reads.

    Args:
        gradient: Of this replica.
        weight: [N, V] of the table.
        group: The replicas.
    """
    parts = () if gradient is None else (*gradient.weights, *gradient.vectors)
    marks = [_mark(parts, first) for first in (0, 1)]
    own = torch.tensor([marks], device=weight.device)
    same = (start_gather(own, group).wait() == own).all(0).tolist()
    if gradient is None:
        gradient = from_rows(weight.new_empty(0).long(), weight.new_empty(0, weight.shape[1]))
    if same[0]:
        total = add_replicas(gradient, weight, group)
        assert total is not None
    elif same[1]:
        total = _add_padded(gradient, len(weight), group)
    else:
        total = _add_sums(gradient, len(weight), group)
    return total.scaled(1 / group.size())


def _mark(parts: Sequence[Tensor], first: int) -> int:
    """Return a number that says which shapes there are, from their dimension `first` on."""
    return zlib.crc32(str([tuple(part.shape[first:]) for part in parts]).encode())


def _add_padded(gradient: RowGradient, num_rows: int, group: ProcessGroup) -> RowGradient:
    """Add up replicas whose reads may differ in their tokens, not in number or J.

    Factors are padded to the longest of all, and cut again when they have arrived.
    """
    device = gradient.weights[0].device
    own = torch.tensor([[len(weights) for weights in gradient.weights]], device=device)
    lengths = start_gather(own, group).wait().tolist()
    longest = [max(read) for read in zip(*lengths, strict=True)]
    factors, sums = exchange_bytes(gradient, num_rows, group.size(), tokens=longest)
    if factors <= sums:
        return _gather_factors(gradient, group, lengths=lengths)
    return _add_sums(gradient, num_rows, group)


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
    return bytes_either_way(own, num_rows, gradient.vectors[0].shape[1], replicas)


def bytes_either_way(own: int, num_rows: int, width: int, replicas: int) -> tuple[float, float]:
    """Return what `exchange_bytes` does, for `own` bytes of factors and [N, width] sums."""
    sums = num_rows * (4 * width + 1)
    return (replicas - 1) * own, 2 * (replicas - 1) / replicas * sums


def _gather_factors(
    gradient: RowGradient,
    group: ProcessGroup,
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
        gathered = zip(*(part.wait().chunk(group.size()) for part in parts), strict=True)
        for rank, factors in enumerate(gathered):
            kept = slice(None if lengths is None else lengths[rank][number])
            read = group_by_row(*(factor[kept] for factor in factors))
            joined = read if joined is None else joined.joined(read)
    assert joined is not None
    return joined


def _add_sums(gradient: RowGradient, num_rows: int, group: ProcessGroup) -> RowGradient:
    rows, own = row_sums(gradient)
    sums = own.new_zeros(num_rows, own.shape[1])
    sums[rows] = own
    # A row that was read with a weight of zero counts as touched: its moments decay.
    touched = torch.zeros(num_rows, dtype=torch.uint8, device=rows.device)
    touched[rows] = 1
    dist.all_reduce(sums, group=group)
    dist.all_reduce(touched, dist.ReduceOp.MAX, group=group)
    rows = touched.nonzero()[:, 0]
    return from_rows(rows, sums[rows])
