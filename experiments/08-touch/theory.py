"""What a touch is worth by each rule, in learning rates: python experiments/08-touch/theory.py.

One row takes gradients of one size and sign, every n-th step. The rules of rules.py step it, and
torch.optim.AdamW a dense parameter. Closed forms stand beside what was simulated. Writes
theory.json.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from rules import RULES, TouchAdamW
from torch import nn

from memory_layers.common.files import write_json
from memory_layers.layers import ValueTable

BETA1, BETA2 = 0.9, 0.95
RATIO = BETA1 / math.sqrt(BETA2)
GAPS = (1, 5, 20, 100)
TOUCHES = (1, 2, 4, 8, 16, 32, 64)
# Steps before the first touch of a row that is new late in training, and between its touches.
LATE, RARE = 300, 100
# Rules that have to see the steps that touch nothing.
DENSE = ("torch", "dense")


def trajectory(rule: str, touches: Sequence[int], steps: int) -> list[float]:
    """Return how far a row has moved after each step, in learning rates.

    Args:
        rule: Of RULES, or "torch" for torch.optim.AdamW.
        touches: Steps that touch the row, counted from 1.
        steps: To take.
    """
    # The rate is a power of two and the row starts at 0: moved distances are exact.
    rate, table = 2.0**-10, ValueTable(2, 2, init_std=0.0)
    if rule == "torch":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            [nn.Parameter(table.weight.detach().clone())],
            rate, (BETA1, BETA2), weight_decay=0.0,
        )  # fmt: skip
    else:
        optimizer = TouchAdamW(
            table.parameters(), rate, betas=(BETA1, BETA2), rule=rule, steps=steps
        )
    weight, when, moved = optimizer.param_groups[0]["params"][0], set(touches), []
    for step in range(1, steps + 1):
        touched = step in when
        if rule == "torch":
            weight.grad = torch.full_like(weight, float(touched))
        elif touched or rule in DENSE:
            # A sum of ones over what was read has a gradient of ones. Row 0 is another one.
            table(torch.tensor([[int(touched)]]), torch.ones(1, 1)).sum().backward()
        optimizer.step()
        moved.append(-weight[1, 0].item() / rate)
    return moved


def steady(rule: str, gap: int) -> float:
    """Return the displacement a touch, of a row touched every `gap` steps for long."""
    # Moments settle with the steps, or with the touches where they advance at those alone.
    count = max(8, 300 // gap) if rule in DENSE else 300
    touches = range(gap, gap * count + 1, gap)
    # Until just before the next touch, and before what is owed is added: see Rule.
    moved = trajectory(rule, touches, gap * (count + 1))
    half = count // 2
    return (moved[-2] - moved[gap * (half + 1) - 2]) / (count - half)


def closed(gap: int) -> float:
    """Return the same of dense AdamW: first step, times the geometric series of the gap."""
    return _unit(gap) * (1 - RATIO**gap) / (1 - RATIO)


def _unit(gap: int) -> float:
    first = (1 - BETA1) / (1 - BETA1**gap)
    return first / math.sqrt((1 - BETA2) / (1 - BETA2**gap))


def new(rule: str) -> dict[str, list[float]]:
    """Return the displacement of a row that is new late in training, after its first touches.

    `read` is what the row has moved by when the next touch reads it, RARE steps later, `kept` what
    it has moved by when training ends then.
    """
    touches = [LATE + RARE * number for number in range(TOUCHES[-1])]
    moved = trajectory(rule, touches, touches[-1] + RARE)
    # With momentum that comes late, what is kept is what is owed too.
    kept = [trajectory(rule, touches[:count], touches[count - 1] + RARE)[-1] for count in TOUCHES]
    return {
        "read": [round(moved[touches[count - 1] + RARE - 2], 3) for count in TOUCHES],
        "kept": [round(number, 3) for number in kept],
    }


def main() -> None:
    """Simulate, compare with the closed forms, and write."""
    rules = ("torch", *RULES)
    results = {
        "betas": [BETA1, BETA2],
        "gaps": list(GAPS),
        "touches": list(TOUCHES),
        "steps_between_touches_of_a_new_row": RARE,
        "steady_closed_form_dense": [round(closed(gap), 3) for gap in GAPS],
        "steady": {rule: [round(steady(rule, gap), 3) for gap in GAPS] for rule in rules},
        "new": {rule: new(rule) for rule in rules},
    }
    print("steady state, a touch every", GAPS, "closed form of dense:", *map(closed, GAPS))
    for rule in rules:
        print(rule, results["steady"][rule], *results["new"][rule].items())
    for measured, expected in zip(results["steady"]["torch"], map(closed, GAPS), strict=True):
        assert abs(measured / expected - 1) < 0.01, (measured, expected)
    write_json(Path(__file__).parent / "theory.json", results)


if __name__ == "__main__":
    main()
