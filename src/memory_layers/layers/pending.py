"""The reads of a table that a backward pass has left for an optimizer, in bounded memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from memory_layers.ops.write import RowGradient, group_by_row, row_sums

FOLD_BYTES = 2**30

Exchange = Callable[[RowGradient | None], RowGradient | None]


class PendingReads:
    """Factors of a table gradient, of one read after the other.

    Beyond `fold_bytes` the list is folded into one read, (rows, sums): it never grows beyond that,
    or twice the touched rows, plus the reads of one backward pass. Folding waits for a GPU.

    Args:
        fold_bytes: Size of the list, in bytes, beyond which it is folded.
        exchange: Adds up the gradient over the replicas of the table. None: there are none.
    """

    def __init__(self, fold_bytes: int = FOLD_BYTES, exchange: Exchange | None = None) -> None:
        self.fold_bytes = fold_bytes
        self._exchange = exchange
        self.clear()

    def clear(self) -> None:
        """Forget all reads."""
        self._gradient: RowGradient | None = None
        self._is_scaled = False
        self._is_exchanged = False
        self._folded_bytes = 0

    def __len__(self) -> int:
        """Return the number of reads."""
        return 0 if self._gradient is None else len(self._gradient.entries)

    @property
    def nbytes(self) -> int:
        """Bytes held by the list."""
        held = self._gradient
        if held is None:
            return 0
        return sum(tensor.nbytes for part in (held.entries, held.weights, held.vectors)
                   for tensor in part)  # fmt: skip

    def append(self, slots: Tensor, weights: Tensor, d_out: Tensor) -> None:
        """Add the factors of one read.

        Args:
            slots: [T, J] row numbers.
            weights: [T, J].
            d_out: [T, V], gradient of the read.

        Raises:
            RuntimeError: The list has been added up over replicas.
        """
        self.join(group_by_row(slots.detach(), weights.detach(), d_out.detach()))

    def join(self, read: RowGradient | None) -> None:
        """Add a gradient of the same table, of any number of reads.

        Raises:
            RuntimeError: The list has been added up over replicas.
        """
        if read is None:
            return
        held = self.local_gradient()
        self._gradient = read if held is None else held.joined(read)
        self._is_scaled = False
        # A list that is mostly touched rows already would be folded again at every read.
        if len(self) > 1 and self.nbytes > max(self.fold_bytes, 2 * self._folded_bytes):
            # Where most rows are touched once or twice, their sums would be larger than the list.
            width = self._gradient.vectors[0].shape[1]
            if len(self._gradient.rows) * (4 * width + 12) < self.nbytes:
                self.fold()
            self._folded_bytes = self.nbytes

    def copy(self) -> "PendingReads":
        """Return a list of the same reads, sharing all tensors."""
        other = PendingReads()
        other.become(self)
        return other

    def become(self, other: "PendingReads") -> None:
        """Take over the reads of another list of the same table, sharing all tensors."""
        self.__dict__.update(other.__dict__)

    def scale(self, factor: float | Tensor) -> None:
        """Multiply the gradient of all reads so far, as clipping does."""
        if self._gradient is not None:
            self._gradient = self._gradient.scaled(factor)
            self._is_scaled = True

    def fold(self) -> None:
        """Multiply the list out into one read: the touched rows and their gradient."""
        if self._gradient is not None:
            self._gradient = from_rows(*row_sums(self._gradient))
            self._is_scaled = False
            self._folded_bytes = self.nbytes

    def row_gradient(self) -> RowGradient | None:
        """Return the gradient of all reads so far, added up over replicas.

        With replicas this is a collective operation, the first time. None when nothing was read.
        """
        if self._exchange is not None and not self._is_exchanged:
            self._gradient = self._exchange(self.local_gradient())
            self._is_scaled = False
            self._is_exchanged = True
        return self._gradient

    def local_gradient(self) -> RowGradient | None:
        """Return the gradient of the reads of this replica, of scale 1.

        Raises:
            RuntimeError: The list has been added up over replicas.
        """
        if self._is_exchanged:
            raise RuntimeError(
                "a backward pass after the gradient was added up over replicas. hint: clip and "
                "step after the last backward pass of a step, then zero_grad"
            )
        held = self._gradient
        if held is None or not self._is_scaled:
            return held
        scaled = tuple(part.float() * held.scale for part in held.weights)
        return RowGradient(held.entries, scaled, held.vectors, torch.ones_like(held.scale))


def from_rows(rows: Tensor, sums: Tensor) -> RowGradient:
    """Return the gradient [N, V] that is zero but in some rows.

    Args:
        rows: [R] row numbers.
        sums: [R, V], their gradients.
    """
    ones = torch.ones(len(rows), 1, device=rows.device)
    return group_by_row(rows[:, None], ones, sums)


def by_row(gradient: Tensor) -> RowGradient:
    """Return a dense or sparse COO gradient [N, V] by row.

    A dense gradient names no touched rows: those with a non-zero gradient count as touched.
    """
    if gradient.layout == torch.sparse_coo:
        gradient = gradient.coalesce()
        return from_rows(gradient.indices()[0], gradient.values())
    rows = gradient.ne(0).any(1).nonzero()[:, 0]
    return from_rows(rows, gradient[rows])
