"""What several seeds say: mean, range and the 95 % interval of Student's t.

The interval takes the seeds as independent draws from one normal distribution. With few of them
it is wide on purpose: two seeds know little about a third. One seed has no interval. Next:
:mod:`memory_layers.study.report_summary` applies this to the runs of a comparison.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

LEVEL = 0.95


def finite(value: object) -> float | None:
    """Return a finite number as a float and anything else, such as None or NaN, as None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def spread(values: Iterable[object]) -> dict[str, Any] | None:
    """Describe the finite numbers among some values.

    Returns:
        A dict of ``mean``, ``min``, ``max``, ``std``, ``half`` (half the width of the 95 %
        interval of the mean) and ``n``, or None without any number. ``std`` and ``half`` are
        None for one number.
    """
    numbers = [number for value in values if (number := finite(value)) is not None]
    if not numbers:
        return None
    # Rounding can put a mean outside its numbers, and an error bar of length -1e-17 is refused.
    low, high = min(numbers), max(numbers)
    return {
        "mean": min(max(statistics.fmean(numbers), low), high),
        "min": low,
        "max": high,
        "std": statistics.stdev(numbers) if len(numbers) > 1 else None,
        "half": half_width(numbers),
        "n": len(numbers),
    }


def half_width(numbers: Sequence[float]) -> float | None:
    """Return half the width of the 95 % interval of a mean, or None for fewer than two numbers."""
    n = len(numbers)
    if n < 2:
        return None
    return student_quantile(n - 1) * statistics.stdev(numbers) / math.sqrt(n)


@cache
def student_quantile(freedom: int) -> float:
    """Return the t that a Student variable exceeds in size with a probability of 5 %.

    Args:
        freedom: Degrees of freedom, one less than the number of seeds.

    Raises:
        ValueError: `freedom` is below 1.
    """
    if freedom < 1:
        raise ValueError(f"freedom must be >= 1, got {freedom}. hint: one seed has no interval")
    low, high = 0.0, 16.0
    # The largest quantile is 12.7, with one degree of freedom. 60 halvings leave rounding alone.
    for _ in range(60):
        middle = (low + high) / 2
        if _student_within(middle, freedom) < LEVEL:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _student_within(t: float, freedom: int) -> float:
    """Return P(-t < T < t), by the finite sums that exist for whole degrees of freedom."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2 == 1
    # Terms cos^k with the ratio of consecutive whole numbers between them.
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(1 if odd else 0, freedom - 1, 2):
        total += term
        term *= cosine * cosine * (k + 1) / (k + 2)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
