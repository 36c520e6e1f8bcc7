"""The pending list of a table: what its reads left behind for the optimizer."""

import torch
from torch import Tensor

from memory_layers.ops.write import RowGradient, group_by_row, row_sums

DEFAULT_BUDGET_BYTES = 2**30


class PendingReads:
    """Factors of the table gradient, of one read after the other.

    Reads of several layers that share the table and of accumulated micro-batches append to the
    same list. Beyond `budget_bytes` the list is folded into one read, (rows, sums): it never grows
    beyond the budget, or twice the touched rows, plus one read. Folding waits for a GPU.

    Attributes:
        is_reduced: Added up over replicas since it was last cleared.
        is_awaited: An optimizer of ours takes the list.

    Args:
        budget_bytes: Size of the list, in bytes, beyond which it is folded.
    """

    def __init__(self, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        self.budget_bytes = budget_bytes
        self._gradient: RowGradient | None = None
        self._is_scaled = False
        self._folded_bytes = 0
        self.is_reduced = False
        self.is_awaited = False

    @property
    def is_scaled(self) -> bool:
        """Whether some reads have been scaled since the last one was added, as clipping does."""
        return self._is_scaled

    def __len__(self) -> int:
        """Number of reads."""
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
            RuntimeError: The list has been added up over replicas since it was last cleared.
        """
        if self.is_reduced:
            raise RuntimeError(
                "a backward pass after the gradient was added up over replicas. hint: call "
                "clip_grad_norm_ and step after the last backward pass, then zero_grad"
            )
        read = group_by_row(slots.detach(), weights.detach(), d_out.detach())
        held = self._gradient
        if held is not None and self._is_scaled:
            ones = torch.ones_like(held.scale)
            scaled = tuple(part.float() * held.scale for part in held.weights)
            held = RowGradient(held.entries, scaled, held.vectors, ones)
        self._is_scaled = False
        self._gradient = read if held is None else held.joined(read)
        # A list that is mostly touched rows already would be folded again at every read.
        if len(self) > 1 and self.nbytes > max(self.budget_bytes, 2 * self._folded_bytes):
            # Where most rows are touched once or twice, their sums would be larger than the list.
            width = d_out.shape[1]
            if self._touched() * (4 * width + 12) < self.nbytes:
                self.fold()
            self._folded_bytes = self.nbytes

    def fold(self) -> None:
        """Multiply the list out into one read: the touched rows and their gradient."""
        if self._gradient is None:
            return
        rows, sums = row_sums(self._gradient)
        ones = torch.ones(len(rows), 1, device=rows.device)
        self._gradient = group_by_row(rows[:, None], ones, sums)
        self._is_scaled = False
        self._folded_bytes = self.nbytes

    def _touched(self) -> int:
        return 0 if self._gradient is None else len(self._gradient.rows)

    def clear(self) -> None:
        """Forget all reads."""
        self._gradient = None
        self._is_scaled = False
        self._folded_bytes = 0
        self.is_reduced = False

    def replace(self, gradient: RowGradient) -> None:
        """Take the sum over all replicas in place of the own reads."""
        self._gradient = gradient
        self.is_reduced = True

    def row_gradient(self) -> RowGradient | None:
        """Return the gradient of all reads so far. None when nothing was read."""
        return self._gradient

    def scale(self, factor: float | Tensor) -> None:
        """Multiply the gradient of all reads so far, as clipping does."""
        if self._gradient is not None:
            self._gradient = self._gradient.scaled(factor)
            self._is_scaled = True

    def to_sparse(self, table: Tensor) -> Tensor:
        """Return the gradient as a coalesced sparse COO tensor of the table's shape and type."""
        if self._gradient is None:
            rows, sums = table.new_empty(0, dtype=torch.int64), table.new_empty(0, table.shape[1])
        else:
            rows, sums = row_sums(self._gradient)
        return torch.sparse_coo_tensor(
            rows[None], sums.to(table.dtype), table.shape, is_coalesced=True, check_invariants=False
        )
