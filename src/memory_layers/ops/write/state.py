"""RowState: what a step keeps of each row of a table. Next: api.py, the step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Rule = Literal["adamw", "sgd"]


@dataclass(frozen=True)
class RowState:
    """What belongs to the rows of a table between steps. A step changes the tensors in place.

    Moments and master are fp32, and fp64 for an fp64 table.

    Attributes:
        exp_avg: [N, V], the first moment of AdamW. None: no first moment, m = g.
        exp_avg_sq: [N, V], the second moment of AdamW, or [N, 1] for one number a row (the mean
            square of g).
        step: Global step of AdamW, counted from 1.
        decayed: [N] fp64, the logarithm of the weight decay that each row has had so far. None: no
            weight decay, decay = 1.
        decay_total: The logarithm of the weight decay that is due by now. A touched row gets what
            it missed, decay = exp(decay_total - decayed[row]).
        master: [N, V] copy that holds the exact values of a bf16 or fp16 table. It is stepped, and
            the rounded rows are written to the table.
        touched: [N] int32, the last step that touched the row, 0 before the first. A row is then
            moved ahead, which needs both moments [N, V] and `paid`. None: it is not.
        paid: [N] fp32, what the step of that touch was multiplied with.
    """

    exp_avg: Tensor | None = None
    exp_avg_sq: Tensor | None = None
    step: int = 1
    decayed: Tensor | None = None
    decay_total: float = 0.0
    master: Tensor | None = None
    touched: Tensor | None = None
    paid: Tensor | None = None

    def numbers(self, lr: float, betas: Sequence[float], eps: float) -> tuple[float, ...]:
        """Return what a kernel multiplies with in this step: see adamw_row in _numba/plain.py."""
        beta1, beta2 = betas
        step_size = lr if self.exp_avg is None else lr / (1 - beta1**self.step)
        if self.touched is not None:
            step_size /= 1 - fading(betas)
        correction = 1 / (1 - beta2**self.step)
        return step_size, beta1, 1 - beta1, beta2, 1 - beta2, correction, eps


def fading(betas: Sequence[float]) -> float:
    """Return r: each step without gradient moves a row r times as far as the one before."""
    return betas[0] / betas[1] ** 0.5
