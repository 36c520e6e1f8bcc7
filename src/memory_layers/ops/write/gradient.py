"""RowGradient: the gradient of a table as factors, grouped by row. Next: api.py, the steps."""

from dataclasses import dataclass, replace

from torch import Tensor

from memory_layers.ops.impl import (
    Impl,
    check_floating,
    check_integer,
    check_rows,
    choose,
)
from memory_layers.ops.write import reference
from memory_layers.shapes import check_shape


@dataclass(frozen=True)
class RowGradient:
    """The gradient of a table, grouped by row and not multiplied out.

    d_table[rows[r]] = scale * sum of weights[e] * vectors[sources[e]], starts[r] <= e < starts[r+1]

    Attributes:
        rows: [R] int64, the touched rows, each once, in rising order.
        starts: [R + 1] int64, where the entries of each row begin.
        sources: [E] int64, the vector of each entry.
        weights: [E], the weight of each entry.
        vectors: [S, V], output gradients of the reads.
        scale: A factor on the whole gradient, such as that of clipping.
    """

    rows: Tensor
    starts: Tensor
    sources: Tensor
    weights: Tensor
    vectors: Tensor
    scale: float = 1.0

    @property
    def factors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tensors that define the row sums."""
        return self.starts, self.sources, self.weights, self.vectors

    def scaled(self, factor: float) -> "RowGradient":
        """Return this gradient times a factor, sharing all tensors."""
        return replace(self, scale=self.scale * factor)


def group_by_row(
    slots: Tensor, weights: Tensor, sources: Tensor, vectors: Tensor, *, impl: Impl = "auto"
) -> RowGradient:
    """Group the factors of a table gradient by the row they belong to.

    Args:
        slots: [E] int64, the row of each entry.
        weights: [E], the weight of each entry.
        sources: [E] int64, rows of `vectors`.
        vectors: [S, V].
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.

    Raises:
        ValueError: Shapes or types disagree, a source is out of range, or `impl` does not support
            these inputs.
    """
    sizes = check_shape("slots", slots, "E")
    check_shape("weights", weights, "E", **sizes)
    check_shape("sources", sources, "E", **sizes)
    check_integer("slots", slots)
    check_integer("sources", sources)
    check_floating(weights=weights, vectors=vectors)
    check_rows("sources", sources, check_shape("vectors", vectors, "S V")["S"])
    if choose(impl, "group_by_row", weights, vectors) == "cpu":
        from memory_layers.ops.write import cpu

        rows, starts, order = cpu.group_by_row(slots)
    else:
        rows, starts, order = reference.group_by_row(slots)
    return RowGradient(rows, starts, sources[order], weights[order], vectors)


def row_sums(gradient: RowGradient, *, impl: Impl = "auto") -> Tensor:
    """Multiply the factors out for the touched rows.

    Args:
        gradient: The factors.
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.

    Returns:
        [R, V] in fp32 (fp64 if an input is), the scale included.
    """
    if choose(impl, "row_sums", gradient.weights, gradient.vectors) == "cpu":
        from memory_layers.ops.write import cpu

        sums = cpu.row_sums(*gradient.factors)
    else:
        sums = reference.row_sums(*gradient.factors)
    return sums if gradient.scale == 1.0 else sums.mul_(gradient.scale)


def row_norm(gradient: RowGradient, *, impl: Impl = "auto") -> float:
    """Return the Euclidean norm of the whole table gradient.

    Args:
        gradient: The factors.
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.
    """
    if choose(impl, "row_norm", gradient.weights, gradient.vectors) == "cpu":
        from memory_layers.ops.write import cpu

        return gradient.scale * cpu.row_norm(*gradient.factors)
    return gradient.scale * float(reference.row_sums(*gradient.factors).norm())
