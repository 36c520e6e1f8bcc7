"""What several seeds say: mean, range and the 95 % interval of Student's t.

The interval takes the seeds as independent draws from one normal distribution. With few of them
it is wide: two seeds know little about a third. One seed has no interval. Next: summary.py applies
this to the runs of a comparison.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
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
        `mean`, `min`, `max`, `std`, `half` (half the width of the 95 % interval of the mean) and
        `n`. None without any number. `std` and `half` are None for one number.
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
    # Runs are measured without it, too.
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, (1 + LEVEL) / 2)) * statistics.stdev(numbers) / math.sqrt(n)
