"""RowSteps: how rows move, each along its own gradient and all of them along what is common."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from memory_layers.layers import WrittenTable
from memory_layers.optim import MemoryAdamW

# The learning rate of what all rows move by, as a share of that of a row.
COMMON = 0.1


class RowSteps:
    """Adam for the rows of a lesson: a step of each row, and one that all of them take together.

    What is common to all that is taught, such as how an answer begins and ends, is in the gradients
    of all rows: their sum moves all of them in every update, also those that it does not touch.
    What was written before the lesson stays.

    Args:
        table: The rows.
        rows: int64, those of the lesson.
        lr: How far an entry of a row moves in a step.
    """

    def __init__(self, table: WrittenTable, rows: Tensor, lr: float) -> None:
        self.weight, self.rows = table.weight, rows.to(table.weight.device)
        others = torch.ones(len(self.weight), dtype=torch.bool, device=self.weight.device)
        others[self.rows] = False
        self.others = others.nonzero()[:, 0]
        self.values = slice(table.query_dim + 1, None)
        self.common = nn.Parameter(torch.zeros_like(self.weight[0, self.values]))
        self.own = MemoryAdamW([self.weight], lr=lr)
        self.together = torch.optim.Adam([self.common], lr=COMMON * lr, betas=(0.9, 0.95))

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.own.zero_grad()

    @torch.no_grad()
    def step(self) -> None:
        """Move the rows."""
        assert self.weight.grad is not None
        gradient = self.weight.grad.to_sparse()
        mine = torch.isin(gradient.indices()[0], self.rows)
        self.common.grad = gradient.values()[mine, self.values].sum(0).to(self.common)
        before = self.weight[self.others]
        self.own.step()
        self.weight[self.others] = before
        self.together.step()
        self.weight[self.rows, self.values] += self.common
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
