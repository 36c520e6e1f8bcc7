"""Intervals over seeds: the quantiles of published tables, and no interval of one seed."""

from __future__ import annotations

import math

import pytest

from memory_layers.study.intervals import half_width, spread, student_quantile

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
def test_quantiles_of_the_table(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, abs=5e-4)


def test_two_degrees_of_freedom_have_a_closed_form() -> None:
    assert student_quantile(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-12)


def test_no_degree_of_freedom_is_refused() -> None:
    with pytest.raises(ValueError, match="freedom must be >= 1, got 0"):
        student_quantile(0)


def test_half_width_of_three_numbers() -> None:
    # Standard deviation 1, standard error 1 / sqrt(3).
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / math.sqrt(3))
    assert half_width([0.5]) is None


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
