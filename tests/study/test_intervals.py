"""Intervals over seeds: the quantiles of published tables, and no interval of one seed."""

import math
import statistics

import pytest

from memory_layers.study.intervals import finite, half_width, spread

# 97.5 % quantiles of Student's t, as any table prints them.
TABLE = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    9: 2.262,
    10: 2.228,
    30: 2.042,
    120: 1.980,
}


@pytest.mark.parametrize(("freedom", "quantile"), TABLE.items())
def test_half_width_is_the_quantile_of_the_table_times_the_standard_error(
    freedom: int, quantile: float
) -> None:
    numbers = [float(n) for n in range(freedom + 1)]
    error = statistics.stdev(numbers) / math.sqrt(len(numbers))
    assert half_width(numbers) == pytest.approx(quantile * error, rel=5e-4)


def test_two_degrees_of_freedom_have_a_closed_form() -> None:
    # Standard deviation 1, standard error 1 / sqrt(3).
    quantile = 0.95 * math.sqrt(2 / (1 - 0.95**2))
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(quantile / math.sqrt(3), rel=1e-12)


def test_one_number_has_no_interval() -> None:
    assert half_width([0.5]) is None


@pytest.mark.parametrize("value", [None, "1", True, float("nan"), float("inf")])
def test_only_finite_numbers_count(value: object) -> None:
    assert finite(value) is None


def test_spread_leaves_out_what_is_no_number() -> None:
    found = spread([None, 1.0, float("nan"), "x", 2])
    assert found is not None
    assert (found["mean"], found["n"]) == (1.5, 2)
    assert found["half"] == pytest.approx(12.7062 / 2, rel=1e-4)
    assert spread([None, float("inf")]) is None


def test_mean_stays_within_its_numbers() -> None:
    found = spread([0.1, 0.1, 0.1])
    assert found is not None
    assert found["min"] <= found["mean"] <= found["max"]
