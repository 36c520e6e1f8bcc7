"""The rules that are compared: AdamW of rows that few steps touch, as steps of MemoryAdamW.

`r` is beta1 / sqrt(beta2): while a row is left alone, dense AdamW goes on moving it, each step by r
times as much as the step before. Its moments after n steps are beta1^n * m and beta2^n * v.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.optim.adamw import adamw

from memory_layers.ops.write import RowGradient, row_sums
from memory_layers.optim import MemoryAdamW


@dataclass(frozen=True)
class Rule:
    """What a rule does at the touch of a row.

    Attributes:
        state: "full" moments, "squares" for the second alone, or one of them a "row".
        clock: What the bias is corrected by: the "global" step, or the "touches" of the row.
        fades: The moments decay in the steps that do not touch the row, too.
        momentum: Displacement of those steps: "none", added "late", at the next touch and once at
            the end of training, or "ahead", at the touch, less what did not come true at the next.
        dense: torch.optim.AdamW on all rows.
    """

    state: Literal["full", "squares", "row"] = "full"
    clock: Literal["global", "touches"] = "global"
    fades: bool = False
    momentum: Literal["none", "late", "ahead"] = "none"
    dense: bool = False


RULES = {
    "full": Rule(),
    "row": Rule("row"),
    "full_touches": Rule(clock="touches"),
    "row_touches": Rule("row", clock="touches"),
    "row_fades": Rule("row", fades=True),
    "squares": Rule("squares"),
    "squares_fade": Rule("squares", fades=True),
    "full_late": Rule(fades=True, momentum="late"),
    "full_ahead": Rule(fades=True, momentum="ahead"),
    "dense": Rule(dense=True),
}


@njit(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy", cache=True)
def _step_rows(
    arrays: tuple, rows: np.ndarray, sums: np.ndarray, step: int, numbers: tuple, choices: tuple
) -> None:
    """Step rows by their gradients.

    Args:
        arrays: The table, [N, V], both moments (without rows where there is none), and touches so
            far and step of the last, [N, 2].
        rows: [R].
        sums: [R, V], their gradients.
        step: Counted from 1.
        numbers: The rates of all steps, betas, eps.
        choices: Whether the bias is corrected by touches, moments fade, momentum comes late, or
            ahead.
    """
    (table, first, second, touched), (rates, betas, eps) = arrays, numbers
    by_touches, fades, late, ahead = choices
    beta1, beta2 = betas
    width, full = table.shape[1], second.shape[1] == table.shape[1]
    powers1, powers2 = beta1 ** np.arange(step + 1), beta2 ** np.arange(step + 1)
    ratio = beta1 / np.sqrt(beta2)
    eps = np.float32(eps)
    for index in range(rows.shape[0]):
        row = rows[index]
        value, gradient = table[row], sums[index]
        before = touched[row, 1]
        touched[row, 0] += 1
        touched[row, 1] = step
        gap = step - before if fades else 1
        clock = touched[row, 0] if by_touches else step
        keep1, keep2 = np.float32(powers1[gap]), np.float32(powers2[gap])
        add1, add2 = np.float32(1 - beta1), np.float32(1 - beta2)
        correction = np.float32(1 / (1 - powers2[clock]))
        if not full:
            square = np.float32(0)
            for v in range(width):
                square += gradient[v] * gradient[v]
            second[row, 0] = keep2 * second[row, 0] + add2 * square / np.float32(width)
            rate = np.float32(rates[step]) / (np.sqrt(correction * second[row, 0]) + eps)
            for v in range(width):
                value[v] -= rate * gradient[v]
            continue
        if first.shape[0] == 0:
            rate = np.float32(rates[step])
            for v in range(width):
                second[row, v] = keep2 * second[row, v] + add2 * gradient[v] * gradient[v]
                value[v] -= rate * gradient[v] / (np.sqrt(correction * second[row, v]) + eps)
            continue
        m, s = first[row], second[row]
        if (late or ahead) and before > 0:
            # Steps that were missed, or those that were paid for and did not come.
            share = -(ratio**gap) if ahead else ratio - ratio**gap
            past = np.float32(rates[before] * share / (1 - ratio) / (1 - powers1[before]))
            scale = np.float32(1 / (1 - powers2[before]))
            for v in range(width):
                value[v] -= past * m[v] / (np.sqrt(scale * s[v]) + eps)
        now = rates[step] / (1 - powers1[clock])
        rate = np.float32(now / (1 - ratio) if ahead else now)
        for v in range(width):
            m[v] = keep1 * m[v] + add1 * gradient[v]
            s[v] = keep2 * s[v] + add2 * gradient[v] * gradient[v]
            value[v] -= rate * m[v] / (np.sqrt(correction * s[v]) + eps)


class TouchAdamW(MemoryAdamW):
    """MemoryAdamW of fp32 tables, whose rows are stepped by a rule.

    Args:
        *args: As for MemoryAdamW.
        rule: Of RULES.
        steps: Of the whole run: at the last one, displacement that is owed is added.
        **kwargs: As for MemoryAdamW, without `value_state`.

    Attributes:
        gaps: Touches by the whole part of log2 of the steps since the one before. The first touch
            of a row counts from step 0.
    """

    def __init__(self, *args: Any, rule: str, steps: int, **kwargs: Any) -> None:  # noqa: ANN401
        self.rule, self.steps = RULES[rule], steps
        self.gaps = torch.zeros(20, dtype=torch.int64)
        state = "row" if self.rule.state == "row" else "full"
        super().__init__(*args, value_state=state, **kwargs)

    def init_table_state(self, weight: Tensor) -> None:
        """Make the moments, and what a row has to remember of its touches."""
        super().init_table_state(weight)
        state = self.state[weight]
        if self.rule.state == "squares":
            del state["exp_avg"]
        state["touched"] = torch.zeros(len(weight), 2, dtype=torch.int64)
        state["rates"] = torch.zeros(self.steps + 1, dtype=torch.float64)

    def _step_table(
        self, weight: Tensor, gradient: RowGradient | None, group: dict[str, Any]
    ) -> None:
        if not (state := self.state[weight]):
            self.init_table_state(weight)
        state["step"] += 1
        step = state["step"]
        state["rates"][step] = group["lr"]
        if gradient is not None:
            rows, sums = row_sums(gradient)
            if self.rule.dense:
                self._step_whole(weight, rows, sums, group)
            else:
                self._step_rows(weight, rows, sums, group)
        if self.rule.momentum == "late" and step == self.steps:
            self._pay(weight, group)

    def _step_rows(self, weight: Tensor, rows: Tensor, sums: Tensor, group: dict[str, Any]) -> None:
        state, rule = self.state[weight], self.rule
        gaps = (state["step"] - state["touched"][rows, 1]).double().log2().long()
        self.gaps += gaps.bincount(minlength=len(self.gaps))
        first = state["exp_avg"].numpy() if "exp_avg" in state else np.empty((0, 0), np.float32)
        choices = (
            rule.clock == "touches", rule.fades, rule.momentum == "late", rule.momentum == "ahead"
        )  # fmt: skip
        _step_rows(
            (weight.detach().numpy(), first, state["exp_avg_sq"].numpy(), state["touched"].numpy()),
            rows.numpy(), sums.numpy(), state["step"],
            (state["rates"].numpy(), group["betas"], group["eps"]), choices,
        )  # fmt: skip

    def _step_whole(
        self, weight: Tensor, rows: Tensor, sums: Tensor, group: dict[str, Any]
    ) -> None:
        state = self.state[weight]
        gradient = torch.zeros_like(weight)
        gradient[rows] = sums
        beta1, beta2 = group["betas"]
        # torch counts the step itself.
        count = torch.tensor(state["step"] - 1.0)
        adamw(
            [weight], [gradient], [state["exp_avg"]], [state["exp_avg_sq"]], [], [count],
            fused=True, amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"],
            weight_decay=0.0, eps=group["eps"], maximize=False,
        )  # fmt: skip

    def _pay(self, weight: Tensor, group: dict[str, Any]) -> None:
        """Add the displacement of all steps since the last touch of each row."""
        state, (beta1, beta2) = self.state[weight], group["betas"]
        last = state["touched"][:, 1]
        rows = last.nonzero()[:, 0]
        last = last[rows].double()[:, None]
        ratio = beta1 / beta2**0.5
        owed = (ratio - ratio ** (state["step"] - last + 1)) / (1 - ratio)
        rate = state["rates"][last[:, 0].long()][:, None] * owed / (1 - beta1**last)
        root = (state["exp_avg_sq"][rows] / (1 - beta2**last)).sqrt() + group["eps"]
        weight[rows] -= (rate * state["exp_avg"][rows] / root).float()
