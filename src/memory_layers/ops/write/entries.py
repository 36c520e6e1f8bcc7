"""Entries: row and place of each factor of a gradient in one 64-bit number.

One sort of plain numbers groups them by row, in a fixed order and, on the CPU, in place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from memory_layers.ops.dispatch import check_rows

# A row number must leave room for the sign bit.
LARGEST_TABLE = 2**31
PLACE_BITS = 32
PLACE_MASK = 2**PLACE_BITS - 1

# Entries, weights and vectors of each read, and the scale: see RowGradient.
Factors = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Tensor]


def row_entries(slots: Tensor) -> Tensor:
    """[T, J] slots → [T * J] int64 entries, sorted.

    Raises:
        ValueError: The read has too many entries, or a slot is negative or 2^31 or more (checked
            on the CPU).
    """
    return torch.ops.memory_layers.row_entries(slots)


def pack_entries(slots: Tensor) -> Tensor:
    """[T, J] slots → [T * J] int64 entries: row << 32 | t * J + j, in the order of the places.

    Raises:
        ValueError: The read has too many entries.
    """
    if slots.numel() > PLACE_MASK:
        raise ValueError(
            f"a read may have at most {PLACE_MASK} entries (T * J), got {slots.numel()}. "
            "hint: split the batch"
        )
    # Added in place: two more tensors of this size would count in a training step's memory.
    places = torch.arange(slots.numel(), device=slots.device)
    return places.add_(slots.flatten(), alpha=2**PLACE_BITS)


def sort_entries(entries: Tensor) -> Tensor:
    """Sort entries and return them. On the CPU in place, without a copy."""
    if entries.device.type != "cpu":
        return entries.sort().values
    entries.numpy().sort()
    return entries


def check_entries(entries: Tensor, num_rows: int) -> None:
    """Refuse entries that name a row outside the table or a place outside the read.

    Looks at them on the CPU always, on a GPU in torch's anomaly mode, a part at a time.

    Raises:
        ValueError: A row or a place is out of range.
    """
    if entries.device.type != "cpu" and not torch.is_anomaly_enabled():
        return
    for part in entries.split(2**16):
        check_rows("gradient.rows", part >> PLACE_BITS, num_rows)
        check_rows("places of gradient.entries", part & PLACE_MASK, len(entries))


def merge(
    entries: Sequence[Tensor], weights: Sequence[Tensor], vectors: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Join the factors of several reads into those of one.

    Args:
        entries: [T_i * J_i] of each read, sorted.
        weights: [T_i, J_i] of each read.
        vectors: [T_i, V] of each read.

    Returns:
        entries: [E] sorted, with places t * J + j, where t counts on through the reads and J is
            the largest J_i.
        weights: [T, J], with zeros where a read has fewer than J.
        vectors: [T, V].
    """
    if len(entries) == 1:
        return entries[0], weights[0], vectors[0]
    width = max(read.shape[1] for read in weights)
    first, moved = 0, []
    for read_entries, read_weights in zip(entries, weights, strict=True):
        own = read_weights.shape[1]
        place = read_entries & PLACE_MASK
        token = first + place // own
        moved.append(read_entries - place + token * width + place % own)
        first += read_weights.shape[0]
    padded = [F.pad(read, (0, width - read.shape[1])) for read in weights]
    return sort_entries(torch.cat(moved)), torch.cat(padded), torch.cat(list(vectors))


# An operation of its own, so that tensors without data can pass through a training step.
torch.library.define("memory_layers::row_entries", "(Tensor slots) -> Tensor")


@torch.library.impl("memory_layers::row_entries", ("cpu", "cuda"))
def _row_entries(slots: Tensor) -> Tensor:
    check_rows("slots", slots, LARGEST_TABLE)
    return sort_entries(pack_entries(slots))


@torch.library.register_fake("memory_layers::row_entries")
def _(slots: Tensor) -> Tensor:
    return slots.new_empty(slots.numel(), dtype=torch.int64)
