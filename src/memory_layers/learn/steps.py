"""RowSteps: how rows move, each along its own gradient and all of them along what is common."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from memory_layers.layers import WrittenTable
from memory_layers.optim import MemoryAdamW

# The learning rate of what all rows move by, as a share of that of a row.
COMMON = 0.1


class RowSteps:
    """Adam for the rows of a lesson: a step of each value, and one that all of them take together.

    Rows that stand for one name have one value, and all that is learned where one of them is read
    is learned for all of them. What is common to all that is taught, such as how an answer begins
    and ends, is in the gradients of all rows: their sum moves all of them in every update, also
    those that it does not touch. What was written before the lesson stays.

    Args:
        table: The rows.
        rows: int64 [R], those of the lesson.
        values: int64 [R], those with the same number have one value.
        lr: How far an entry of a row moves in a step.
    """

    def __init__(self, table: WrittenTable, rows: Tensor, values: Tensor, lr: float) -> None:
        self.weight, self.rows = table.weight, rows.to(table.weight.device)
        # Of each row of the table. Those of earlier lessons have none.
        self.value_of = torch.full((len(self.weight),), -1).to(self.rows)
        self.value_of[self.rows] = values.to(self.rows)
        self.columns = slice(table.query_dim + 1, None)
        self.common = nn.Parameter(torch.zeros_like(self.weight[0, self.columns]))
        # Momentum comes with the next touch: a name is read in every pass.
        self.own = MemoryAdamW([self.weight], lr=lr, value_state="full")
        self.together = torch.optim.Adam([self.common], lr=COMMON * lr, betas=(0.9, 0.95))

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.own.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        """Move the rows."""
        assert self.weight.grad is not None
        gradient = self.weight.grad.to_sparse().coalesce()
        rows, sums = gradient.indices()[0], gradient.values()
        # A silent token reads a row with weight 0.
        moved = sums.any(1) & (self.value_of[rows] >= 0)
        values, place = self.value_of[rows[moved]].unique(return_inverse=True)
        of_values = sums.new_zeros(len(values), sums.shape[1]).index_add_(0, place, sums[moved])
        rows = torch.isin(self.value_of, values).nonzero()[:, 0]
        of_rows = of_values[torch.searchsorted(values, self.value_of[rows])]
        self.weight.grad = torch.sparse_coo_tensor(
            rows[None], of_rows, self.weight.shape, is_coalesced=True, check_invariants=False
        )
        self.own.step()
        self.common.grad = of_values[:, self.columns].sum(0).to(self.common)
        self.together.step()
        self.weight[self.rows, self.columns] += self.common
        self.common.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """Return the rows and the moments of their gradients, to be saved."""
        found = {"weight": self.weight.detach().clone()}
        for name, optimizer, of in self._parts():
            kept = optimizer.state.get(of, {})
            found |= {f"{name}.{k}": torch.as_tensor(v).detach().clone() for k, v in kept.items()}
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo `tensors`."""
        with torch.no_grad():
            self.weight.copy_(tensors["weight"])
        for name, optimizer, _ in self._parts():
            prefix = f"{name}."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if state:
                optimizer.load_state_dict({**optimizer.state_dict(), "state": {0: state}})

    def _parts(self) -> tuple[tuple[str, torch.optim.Optimizer, Tensor], ...]:
        return ("own", self.own, self.weight), ("together", self.together, self.common)
