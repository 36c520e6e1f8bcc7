"""RowGradient: the gradient of a table as factors, sorted by row. Next: api.py, the steps."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memory_layers.ops.dispatch import (
    Impl,
    check_floating,
    check_integer,
    check_same_device,
    kernels,
)
from memory_layers.ops.write.entries import row_entries
from memory_layers.shapes import check_shape


@dataclass(frozen=True)
class RowGradient:
    """The gradient of a table: the factors of each read, sorted by row and not multiplied out.

    d_table[row] = scale * sum of weights[t, j] * vectors[t] over the entries of the row

    Attributes:
        entries: One [T * J] int64 tensor a read, rising: row << 32 | t * J + j.
        weights: [T, J] of each read.
        vectors: [T, V] of each read, the gradients of what it returned.
        scale: 0-dim fp32 on the same device, a factor on the whole gradient, as clipping sets it.
    """

    entries: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    vectors: tuple[Tensor, ...]
    scale: Tensor

    def __post_init__(self) -> None:
        """Refuse factors that do not fit each other: kernels follow their addresses."""
        if not len(self.entries) == len(self.weights) == len(self.vectors) > 0:
            raise ValueError("a gradient needs entries, weights and vectors of one or more reads")
        reads = zip(self.entries, self.weights, self.vectors, strict=True)
        for entries, weights, vectors in reads:
            sizes = check_shape("weights", weights, "T J")
            check_shape("entries", entries, str(weights.numel()))
            check_shape("vectors", vectors, "T V", T=sizes["T"])
            check_same_device(entries=entries, weights=weights, vectors=vectors, scale=self.scale)
            if entries.dtype != torch.int64 or not entries.is_contiguous():
                raise ValueError(f"entries must be int64 and contiguous, got {entries.dtype}")

    @property
    def rows(self) -> Tensor:
        """[R] int64, the touched rows, each once, in rising order. Waits for a GPU."""
        return torch.unique(torch.cat(self.entries) >> 32)

    def scaled(self, factor: float | Tensor) -> "RowGradient":
        """Return this gradient times a factor, sharing all other tensors."""
        return replace(self, scale=self.scale * factor)

    def joined(self, other: "RowGradient") -> "RowGradient":
        """Return the sum of two gradients of one scale, sharing all tensors."""
        return RowGradient(
            self.entries + other.entries,
            self.weights + other.weights,
            self.vectors + other.vectors,
            self.scale,
        )


def group_by_row(slots: Tensor, weights: Tensor, vectors: Tensor) -> RowGradient:
    """Sort the factors that one read leaves by the row they belong to.

    Args:
        slots: [T, J] row numbers, int32 or int64, below 2^31.
        weights: [T, J].
        vectors: [T, V].

    Raises:
        ValueError: Shapes or types disagree, or a slot is negative or 2^31 or more (checked on
            the CPU).
    """
    sizes = check_shape("slots", slots, "T J")
    check_shape("weights", weights, "T J", **sizes)
    check_shape("vectors", vectors, "T V", T=sizes["T"])
    check_integer("slots", slots)
    check_floating(weights=weights, vectors=vectors)
    check_same_device(slots=slots, weights=weights, vectors=vectors)
    entries = row_entries(slots)
    # ones and not tensor(1.0): a number copied from the host would make it wait for a GPU.
    scale = torch.ones((), dtype=torch.float32, device=slots.device)
    return RowGradient((entries,), (weights,), (vectors,), scale)


def row_sums(gradient: RowGradient, *, impl: Impl = "auto") -> tuple[Tensor, Tensor]:
    """Multiply the factors out for the touched rows. Waits for a GPU.

    Args:
        gradient: The factors.
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.

    Returns:
        rows: [R] int64, rising.
        sums: [R, V] in fp32 (fp64 if an input is), the scale included.
    """
    ops = kernels("write", impl, "row_sums", *gradient.weights, *gradient.vectors)
    return ops.row_sums((gradient.entries, gradient.weights, gradient.vectors, gradient.scale))


def row_norm(gradient: RowGradient, *, impl: Impl = "auto") -> Tensor:
    """Return the Euclidean norm of the whole table gradient, 0-dim, without waiting for a GPU.

    Args:
        gradient: The factors.
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.
    """
    if gradient.vectors[0].shape[1] == 0:
        # A rank of a memory group may hold no columns.
        return torch.zeros_like(gradient.scale)
    ops = kernels("write", impl, "row_norm", *gradient.weights, *gradient.vectors)
    return ops.row_norm((gradient.entries, gradient.weights, gradient.vectors, gradient.scale))
