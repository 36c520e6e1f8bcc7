"""RowState: what a step keeps of each row of a table. Next: api.py, the step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
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
        last_step: [N] int32, the last step that touched the row, 0 before the first. Rows are then
            moved ahead, which needs both moments [N, V] and `last_lr`. None: they are not.
        last_lr: [N] fp32, the learning rate of that step.
    """

    exp_avg: Tensor | None = None
    exp_avg_sq: Tensor | None = None
    step: int = 1
    decayed: Tensor | None = None
    decay_total: float = 0.0
    master: Tensor | None = None
    last_step: Tensor | None = None
    last_lr: Tensor | None = None

    def numbers(self, lr: float, betas: Sequence[float], eps: float) -> tuple[float, ...]:
        """Return what a kernel multiplies with in this step.

        Returns:
            Step size, beta1, 1 - beta1, beta2, 1 - beta2, the correction of the second moment, eps.
            Of rows that are moved ahead, the betas are to the power of the steps since their touch.
        """
        beta1, beta2 = betas
        step_size = lr if self.exp_avg is None else lr / (1 - beta1**self.step)
        if self.last_step is not None:
            step_size = lr * steps_ahead(betas, self.step) / math.sqrt(1 - beta2**self.step)
        correction = 1 / (1 - beta2**self.step)
        return step_size, beta1, 1 - beta1, beta2, 1 - beta2, correction, eps


def fading(betas: Sequence[float]) -> float:
    """Return r: AdamW moves a row that is left alone in each step r times as far as before."""
    return betas[0] / math.sqrt(betas[1])


def steps_ahead(betas: Sequence[float], step: int) -> float:
    """Return S(t), how far AdamW moves from step t on by moments that get no other gradient.

    With m and v as they are in step t and no eps, in units of lr * m / sqrt(v):
        S(t) = sum over k >= 0 of r^k * sqrt(1 - beta2^(t + k)) / (1 - beta1^(t + k))
    """
    r = fading(betas)
    terms = 1 if r == 0 else math.ceil(math.log(1e-17) / math.log(r))
    powers = np.arange(terms)
    beta1, beta2 = (beta ** (step + powers) for beta in betas)
    return float((r**powers * np.sqrt(1 - beta2) / (1 - beta1)).sum())
