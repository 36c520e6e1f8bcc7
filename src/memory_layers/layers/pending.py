"""The pending list of a table: what its reads left behind for the optimizer."""

import torch
from torch import Tensor

from memory_layers.ops.write import RowGradient, group_by_row, row_sums

DEFAULT_BUDGET_BYTES = 2**30


class PendingReads:
    """Factors (slots, weights, d_out) of the table gradient, one entry a read.

    Reads of several layers that share the table and of accumulated micro-batches append to the
    same list. Beyond `budget_bytes` the list is folded into one entry, (rows, sums), so that it
    is never larger than the budget or the touched rows plus one read.

    Args:
        budget_bytes: Size of the list, in bytes, beyond which it is folded.
    """

    def __init__(self, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> None:
        self.budget_bytes = budget_bytes
        self._reads: list[tuple[Tensor, Tensor, Tensor]] = []
        self._gradient: RowGradient | None = None
        self._folded_bytes = 0

    def __len__(self) -> int:
        """Number of entries."""
        return len(self._reads)

    @property
    def nbytes(self) -> int:
        """Bytes held by the list."""
        return sum(tensor.nbytes for read in self._reads for tensor in read)

    def append(self, slots: Tensor, weights: Tensor, d_out: Tensor) -> None:
        """Add the factors of one read.

        Args:
            slots: [T, J] row numbers.
            weights: [T, J].
            d_out: [T, V], gradient of the read.
        """
        self._apply_scale()
        self._gradient = None
        self._reads.append((slots.detach(), weights.detach(), d_out.detach()))
        # A list that is mostly touched rows already would be folded again at every read.
        if len(self._reads) > 1 and self.nbytes > max(self.budget_bytes, 2 * self._folded_bytes):
            self.fold()

    def fold(self) -> None:
        """Multiply the list out into one entry: the touched rows and their gradient."""
        gradient = self.row_gradient()
        if gradient is None:
            return
        ones = torch.ones_like(gradient.rows, dtype=torch.float32)
        self._reads = [(gradient.rows[:, None], ones[:, None], row_sums(gradient))]
        self._gradient = None
        self._folded_bytes = self.nbytes

    def clear(self) -> None:
        """Forget all reads."""
        self._reads.clear()
        self._gradient = None
        self._folded_bytes = 0

    def row_gradient(self) -> RowGradient | None:
        """Group the list by row, once. None when nothing was read."""
        if self._gradient is None and self._reads:
            self._gradient = self._group()
        return self._gradient

    def scale(self, factor: float) -> None:
        """Multiply the gradient of all reads so far, as clipping does."""
        gradient = self.row_gradient()
        if gradient is not None:
            self._gradient = gradient.scaled(factor)

    def to_sparse(self, table: Tensor) -> Tensor:
        """Return the gradient as a coalesced sparse COO tensor of the table's shape and type."""
        gradient = self.row_gradient()
        if gradient is None:
            rows, sums = table.new_empty(0, dtype=torch.int64), table.new_empty(0, table.shape[1])
        else:
            rows, sums = gradient.rows, row_sums(gradient).to(table.dtype)
        return torch.sparse_coo_tensor(
            rows[None], sums, table.shape, is_coalesced=True, check_invariants=False
        )

    def _apply_scale(self) -> None:
        if self._gradient is not None and self._gradient.scale != 1.0:
            factor = self._gradient.scale
            self._reads = [(slots, weights * factor, d) for slots, weights, d in self._reads]

    def _group(self) -> RowGradient:
        offset = 0
        sources = []
        for slots, _, d_out in self._reads:
            tokens = torch.arange(offset, offset + len(slots), device=slots.device)
            sources.append(tokens[:, None].expand(slots.shape).flatten())
            offset += len(d_out)
        slots, weights, vectors = zip(*self._reads, strict=True)
        return group_by_row(
            torch.cat([s.flatten() for s in slots]),
            torch.cat([w.flatten() for w in weights]),
            torch.cat(sources),
            vectors[0] if len(vectors) == 1 else torch.cat(vectors),
        )
