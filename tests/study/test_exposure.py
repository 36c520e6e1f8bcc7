"""Recall by exposures: known curves come back, and intervals are those of the draws they claim."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from made_up import add_exposures

from memory_layers.study.exposure import curve_rows, lift_differences, lift_rows, read_curves
from memory_layers.study.half_recall import exposures_for_half, half_ratios, half_rows, monotone


def results_of(
    recall: Callable[[str, int, int], float],
    variants: Sequence[str] = ("memory_plus", "dense"),
    seeds: int = 3,
    **options: Any,
) -> dict[str, Any]:
    runs = [{"variant": name, "seed": seed} for name in variants for seed in range(seeds)]
    return add_exposures({"runs": runs}, recall, **options)


def by(rows: list[dict[str, Any]], key: str) -> dict[Any, dict[str, Any]]:
    return {row[key]: row for row in rows}


def saturating(variant: str, _seed: int, k: int) -> float:
    """Half of the seen facts at 4 statements of memory_plus, 8 of dense, and never of weak."""
    return k / (k + {"memory_plus": 4, "dense": 8}.get(variant, 400))


# ------------------------------------------------------------------ the number of exposures


@pytest.mark.parametrize(
    ("recall", "needed"),
    [
        # On the grid, halfway between two in log2, and between k = 0 and the first.
        ({0: 0.0, 1: 0.1, 2: 0.2, 4: 0.5, 8: 0.9}, 4),
        ({0: 0.0, 1: 0.1, 2: 0.2, 4: 0.4, 8: 0.6}, 4 * 2**0.5),
        ({0: 0.1, 2: 0.9}, 1.0),
        # What falls is pooled: 0.6 and 0.4 count as 0.5.
        ({0: 0.0, 1: 0.2, 2: 0.6, 4: 0.4, 8: 1.0}, 2),
        ({0: 0.7, 1: 0.8, 2: 0.9}, 0),
        ({0: 0.0, 1: 0.1, 64: 0.49}, np.inf),
        # Nobody with k = 0: none of them would have known.
        ({2: 1.0, 4: 1.0}, 1),
        ({1: 0.0, 8: 1.0}, 8**0.5),
    ],
)
def test_exposures_for_half_of_known_curves(recall: dict[int, float], needed: float) -> None:
    levels, values = np.array(list(recall)), np.array(list(recall.values()))
    found = exposures_for_half(levels, np.stack([values, values]), np.ones(len(values)))
    assert found == pytest.approx([needed, needed])


def test_monotone_is_isotonic_regression() -> None:
    from scipy.optimize import isotonic_regression

    rng = np.random.default_rng(0)
    values, weights = rng.random((20, 8)), rng.integers(1, 9, 8).astype(float)
    for row, fitted in zip(values, monotone(values, weights), strict=True):
        np.testing.assert_allclose(fitted, isotonic_regression(row, weights=weights).x)


# ------------------------------------------------------------------ rows


def test_rows_have_the_means_over_facts_and_seeds() -> None:
    def recall(_variant: str, seed: int, k: int) -> float:
        return (0.1 + 0.1 * seed) * (k > 0) + 0.1

    results = results_of(recall, ("dense",), levels=(0, 1, 8))
    rows = by(curve_rows(read_curves(results, "seen")), "exposures")
    assert list(rows) == [0, 1, 8]
    guessed, told = rows[0], rows[8]
    assert (guessed["facts"], guessed["seeds"], guessed["wording"]) == (80, 3, "seen")
    assert guessed["recall"] == pytest.approx(0.1)
    assert guessed["probability"] == pytest.approx(0.1 * 0.9 + 0.9 * 0.025)
    assert guessed["lift"] is None
    assert told["recall"] == pytest.approx(0.3)
    assert told["lift"] == pytest.approx(0.2 * 0.875)
    assert told["recall_low"] < 0.3 < told["recall_high"]
    (unseen,) = lift_rows(read_curves(results, "unseen"))
    # Of 40 facts, 3 of 4 and, by seed, 6 of 8, 9 of 12 and 12 of 16.
    assert unseen["lift"] == pytest.approx((9 - 3) / 40 * 0.875)


def test_exposures_for_half_recall_by_variant_and_their_ratios() -> None:
    results = results_of(saturating, ("memory_plus", "dense", "weak"))
    curves = read_curves(results, "seen")
    found = by(half_rows(curves), "variant")
    assert found["memory_plus"]["exposures"] == pytest.approx(4)
    assert found["dense"]["exposures"] == pytest.approx(8)
    assert found["dense"]["low"] < 8 < found["dense"]["high"]
    weak = found["weak"]
    assert (weak["exposures"], weak["low"], weak["high"], weak["most"]) == (None, None, None, 64)
    ratios = by(half_ratios(curves, ["memory_plus"]), "reference")
    assert (ratios["dense"]["ratio"], ratios["dense"]["bound"]) == (pytest.approx(2), "")
    assert ratios["dense"]["low"] < 2 < ratios["dense"]["high"]
    assert (ratios["weak"]["ratio"], ratios["weak"]["bound"]) == (pytest.approx(16), ">")
    assert ratios["weak"]["low"] < 16
    assert ratios["weak"]["high"] is None
    (back,) = (r for r in half_ratios(curves, ["weak"]) if r["reference"] == "memory_plus")
    assert (back["ratio"], back["bound"], back["low"]) == (pytest.approx(1 / 16), "<", 0)
    assert 1 / 16 < back["high"] < 1
    lost = read_curves(results_of(lambda *_: 0.1), "seen")
    (row,) = half_ratios(lost, ["dense"])
    assert (row["ratio"], row["bound"], row["low"], row["high"]) == (None, "", 0, None)


def test_a_curve_that_nearly_reaches_half_has_an_open_interval() -> None:
    """44 % at the largest number of statements, of few subjects."""
    results = results_of(lambda _v, _s, k: 0.44 * (k == 64), ("dense",), subjects=25)
    (row,) = half_rows(read_curves(results, "seen"))
    assert row["exposures"] is None
    assert 32 < row["low"] < 64
    assert row["high"] is None


# ------------------------------------------------------------------ intervals


def half_width(row: dict[str, Any], name: str = "recall") -> float:
    return (row[f"{name}_high"] - row[f"{name}_low"]) / 2


def test_interval_of_one_seed_is_that_of_the_subjects() -> None:
    """A subject knows all of its facts or none: more relations are no more subjects."""
    for relations in (("a",), ("a", "b", "c")):
        results = results_of(lambda *_: 0.3, ("dense",), 1, subjects=100, relations=relations)
        row = curve_rows(read_curves(results, "seen"))[3]
        assert half_width(row) == pytest.approx(1.96 * math.sqrt(0.3 * 0.7 / 100), rel=0.08)


def test_interval_of_seeds_has_their_standard_error() -> None:
    """All facts are alike in a seed, so that the draws of subjects add nothing."""
    shares = [2000, 3500, 4500, 5500, 6500, 8000]
    results = results_of(lambda *_: 0.0, ("dense",), len(shares), subjects=5)
    for run, share in zip(results["runs"], shares, strict=True):
        for entry in run["facts"].values():
            entry["p_seen"] = " ".join([str(share)] * len(entry["seen"]))
    row = curve_rows(read_curves(results, "seen"))[0]
    error = statistics.stdev(shares) / 10_000 / math.sqrt(len(shares))
    assert row["probability"] == pytest.approx(0.5)
    assert half_width(row, "probability") == pytest.approx(1.96 * error, rel=0.04)


def test_differences_are_paired_over_subjects_and_seeds() -> None:
    """Both variants find the same subjects and the same seeds easy."""

    def recall(variant: str, seed: int, k: int) -> float:
        return min(k, 4) * (0.1 + 0.02 * seed + 0.02 * (variant == "memory_plus"))

    results = results_of(recall)
    for run in results["runs"]:
        if (run["variant"], run["seed"]) == ("dense", 2):
            other = run
    curves = read_curves(results, "seen")
    (paired,) = lift_differences(curves, ["memory_plus"])
    apart = [half_width(row, "lift") for row in lift_rows(curves)]
    assert paired["verdict"] == "above"
    assert paired["seeds"] == 3
    assert (paired["high"] - paired["low"]) / 2 < 0.5 * math.hypot(*apart)
    # A seed that one of the two lacks is in neither.
    other.update(status="diverged", error="loss is nan")
    other.pop("facts")
    (fewer,) = lift_differences(read_curves(results, "seen"), ["memory_plus"])
    assert fewer["seeds"] == 2
    assert fewer["difference"] == pytest.approx(paired["difference"], abs=0.01)


def test_figures_are_the_same_each_time_and_in_any_order_of_the_runs() -> None:
    results = results_of(saturating)
    first = curve_rows(read_curves(results, "unseen"))
    results["runs"].reverse()
    again = curve_rows(read_curves(results, "unseen"))
    assert sorted(again, key=str) == sorted(first, key=str)


# ------------------------------------------------------------------ what is read


def test_only_relations_with_several_numbers_of_statements_count() -> None:
    results = results_of(saturating, relations=("a", "b"))
    alone = read_curves(results, "seen", ["a"])
    entry = results["exposure"]["b"]
    entry["statements"] = " ".join("4" for _ in entry["subjects"].split())
    both = read_curves(results, "seen")
    assert both.facts.tolist() == alone.facts.tolist() == [40] * 8
    assert curve_rows(both) == curve_rows(alone)
    assert read_curves(results, "seen", ["b"]) is None
    assert read_curves({"runs": [{"variant": "dense", "seed": 0}]}, "seen") is None


def test_without_subjects_of_no_statement_there_is_no_lift() -> None:
    curves = read_curves(results_of(saturating, levels=(1, 4, 16)), "seen")
    assert lift_rows(curves) == lift_differences(curves, ["dense"]) == []
    assert "lift" not in curve_rows(curves)[0]
    assert half_rows(curves)[0]["exposures"] == pytest.approx(4)
