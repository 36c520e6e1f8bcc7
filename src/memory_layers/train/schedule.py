"""Learning rate of a step, as a share of its peak."""

import math

from memory_layers.train.config import Schedule


def rate(schedule: Schedule, step: int, steps: int, warmup: int, end_ratio: float) -> float:
    """Return a rate that rises over the warm-up, then stays or falls to `end_ratio`.

    Args:
        schedule: Shape of the fall.
        step: Counted from 0.
        steps: Of the whole run.
        warmup: Steps of the rise.
        end_ratio: Share of the peak at the last step.
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    fall = done if schedule == "linear" else (1 - math.cos(math.pi * done)) / 2
    return 1.0 + (end_ratio - 1.0) * fall
