"""WrittenTable: rows that were written, each with the query that it is for. See NearestRead."""

import torch
from torch import Tensor, nn

from memory_layers.layers.values import ValueTable

# Tokens that are compared with all rows at a time.
_TOKENS = 1024


class WrittenTable(ValueTable):
    """A value table that stores only what was written, for the queries that it was written for.

    What is stored grows with what is taught, not with N. A row is [query | radius | values]: a
    token whose query has a distance of at most the radius may read it.

    Args:
        num_slots: N.
        value_dim: V.
        query_dim: Width Q of a query, all heads and halves together.
        written: R, number of rows that are written.
        dtype: Storage type of the rows.

    Attributes:
        weight: [R, Q + 1 + V].
        slots: int64 [R], ascending: the slot that each row has.
    """

    slots: Tensor

    def __init__(
        self,
        num_slots: int,
        value_dim: int,
        query_dim: int,
        written: int = 0,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(written, query_dim + 1 + value_dim, init_std=0.0, dtype=dtype)
        self.num_slots, self.query_dim = num_slots, query_dim
        self.register_buffer("slots", torch.zeros(written, dtype=torch.int64))

    @torch.no_grad()
    def nearest(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Find the row that each token may read.

        Args:
            query: [T, Q].

        Returns:
            The row whose query is nearest, in radii, and whether it is within the radius, both [T].
        """
        if len(self.weight) == 0:
            return torch.zeros_like(query[:, 0], dtype=torch.int64), query[:, 0] != query[:, 0]
        rows = self.weight.detach()[:, : self.query_dim + 1].float()
        keys, radii = rows[:, :-1], rows[:, -1]
        found = [(torch.cdist(some, keys) / radii).min(1) for some in query.float().split(_TOKENS)]
        ratio, row = (torch.cat(parts) for parts in zip(*found, strict=True))
        return row, ratio <= 1

    def forward(self, slots: Tensor, weights: Tensor, *, dot: bool = False) -> Tensor:
        """[T, J] rows and weights → [T, V]. Without any row, zeros."""
        if len(self.weight) == 0:
            return weights.new_zeros(len(slots), self.value_dim - self.query_dim - 1)
        return super().forward(slots, weights, dot=dot)[:, self.query_dim + 1 :]

    def write(self, slots: Tensor, rows: Tensor) -> None:
        """Store these rows, and nothing else. The weight becomes another parameter.

        Args:
            slots: int64 [R], ascending.
            rows: [R, Q + 1 + V].
        """
        self.slots = slots.to(self.slots.device)
        weight = rows.to(self.weight).clone()
        self.weight = nn.Parameter(weight, requires_grad=self.weight.requires_grad)

    def rows_of(self, slots: Tensor) -> Tensor:
        """Return the rows of slots, zeros where none is written: [any number] → [same, width]."""
        values = self.weight.detach().new_zeros(len(slots), self.value_dim)
        if len(self.slots):
            slots = slots.to(self.slots.device)
            places = torch.searchsorted(self.slots, slots).clamp(max=len(self.slots) - 1)
            found = self.slots[places] == slots
            values[found] = self.weight.detach()[places[found]]
        return values

    def extra_repr(self) -> str:
        """Show the sizes in print(model)."""
        written, width = self.weight.shape
        values = width - self.query_dim - 1
        return f"num_slots={self.num_slots}, {written=}, query_dim={self.query_dim}, {values=}"
