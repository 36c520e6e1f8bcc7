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
    """

    exp_avg: Tensor | None = None
    exp_avg_sq: Tensor | None = None
    step: int = 1
    decayed: Tensor | None = None
    decay_total: float = 0.0
    master: Tensor | None = None

    def numbers(self, lr: float, betas: Sequence[float], eps: float) -> tuple[float, ...]:
        """Return what a kernel multiplies with in this step: see adamw_row in _numba/plain.py."""
        beta1, beta2 = betas
        step_size = lr if self.exp_avg is None else lr / (1 - beta1**self.step)
        correction = 1 / (1 - beta2**self.step)
        return step_size, beta1, 1 - beta1, beta2, 1 - beta2, correction, eps
