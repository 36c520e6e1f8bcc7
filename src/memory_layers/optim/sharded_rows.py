"""The AdamW step with one second moment a row, for a table of which a rank holds some columns."""

from typing import Any

import torch

from memory_layers.layers import ValueTable
from memory_layers.ops.write import RowGradient, RowState, group_by_row, row_step_, row_sums


def step_sharded_rows(
    table: ValueTable,
    state: dict[str, Any],
    gradient: RowGradient,
    group: dict[str, Any],
    seed: int | None,
) -> None:
    """Take the AdamW step of row_step_ without first moment and with `exp_avg_sq` [N, 1].

    The mean square of a row's gradient is over all V columns, so it is added up over the ranks
    first: the row gradients [R, width] are multiplied out for that. What is left is an SGD step in
    which each row has a rate of its own.

    Args:
        table: Holds some of the columns.
        state: What RowState holds, changed in place.
        gradient: Of these columns.
        group: lr, betas, eps.
        seed: As for row_step_.
    """
    rows, sums = row_sums(gradient)
    # Not sums.square(): that would be a second tensor of this size.
    own = torch.linalg.vector_norm(sums, dim=1).square()
    squares = table.sum_over_shards(own) / table.value_dim
    beta2 = group["betas"][1]
    second = beta2 * state["exp_avg_sq"][rows, 0] + (1 - beta2) * squares
    state["exp_avg_sq"][rows, 0] = second
    divisor = (second / (1 - beta2 ** state["step"])).sqrt() + group["eps"]
    own_rows = {name: state[name] for name in ("decayed", "decay_total", "master") if name in state}
    if table.weight.numel():
        scaled = group_by_row(rows[:, None], (1 / divisor)[:, None], sums)
        row_step_(table.weight, RowState(**own_rows), scaled, "sgd", lr=group["lr"], seed=seed)
    elif "decayed" in state:
        state["decayed"][rows] = state["decay_total"]
