"""The gradient of a table as RowGradient, whatever mode the table keeps it in."""

import torch
from torch import Tensor

from memory_layers.layers import ValueTable
from memory_layers.ops.write import RowGradient, group_by_row


def take_row_gradient(table: ValueTable) -> RowGradient | None:
    """Return the table's gradient grouped by row, None when there is none.

    A dense gradient names no touched rows: those with a non-zero gradient count as touched.

    Args:
        table: A value table after a backward pass.

    Raises:
        ValueError: The table has both pending reads and a `.grad`: its mode changed in between.
    """
    grad = table.weight.grad
    if grad is None:
        return table.pending.row_gradient()
    if len(table.pending):
        raise ValueError(
            "the table has pending reads and a .grad, so grad_mode changed between two backward "
            "passes. hint: call optimizer.zero_grad() after changing grad_mode"
        )
    if grad.layout == torch.sparse_coo:
        grad = grad.coalesce()
        return _from_sums(grad.indices()[0], grad.values())
    rows = grad.ne(0).any(1).nonzero()[:, 0]
    return _from_sums(rows, grad[rows])


def _from_sums(rows: Tensor, sums: Tensor) -> RowGradient:
    ones = torch.ones(len(rows), 1, device=rows.device)
    return group_by_row(rows[:, None], ones, sums)
