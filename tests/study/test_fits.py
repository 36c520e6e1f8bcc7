"""Fits of a sweep: laws that are known come back, and where there is none the record says why."""

import json
from typing import Any

import numpy as np
import pytest

from memory_layers.study import fits
from memory_layers.study.fits import Fit, fit_law, fit_sweep

SLOTS = (2**12, 2**14, 2**16, 2**18, 2**20)


def recall_law(x: float, intercept: float = -8.0, slope: float = 0.5) -> float:
    return float(1 / (1 + np.exp(-(intercept + slope * np.log2(x)))))


def nll_law(x: float, factor: float = 40.0, power: float = -0.2) -> float:
    return float(factor * x**power)


def fitted(metric: str, x: list[float], y: list[float]) -> Fit:
    fit = fit_law(metric, x, y)
    assert isinstance(fit, Fit)
    return fit


@pytest.mark.parametrize(
    ("metric", "law", "line"),
    [
        ("recall", recall_law, (-8.0, 0.5)),
        ("answer_nll", nll_law, (np.log(40.0), -0.2 * np.log(2))),
    ],
)
def test_exact_laws_come_back(metric: str, law: Any, line: tuple[float, float]) -> None:
    fit = fitted(metric, list(SLOTS), [law(x) for x in SLOTS])
    # Every resample lies on the law, too.
    np.testing.assert_allclose(fit.lines, np.tile(line, (1001, 1)), rtol=1e-5)
    record = fit.record()
    assert record["r2"] == pytest.approx(1, abs=1e-9)
    assert record["slope_interval"] == pytest.approx([line[1]] * 2, rel=1e-5)
    assert (record["runs"], record["points"]) == (5, 5)
    middle = law(2**15)
    np.testing.assert_allclose(fit.predict(np.array([2.0**15]))[:, 0], middle, rtol=1e-5)
    np.testing.assert_allclose(fit.reach(np.full(1001, middle)), 15, rtol=1e-5)
    curve = record["curve"]
    assert (curve["x"][0], curve["x"][-1]) == pytest.approx((2**12, 2**20))
    assert curve["y"] == pytest.approx([law(x) for x in curve["x"]], rel=1e-5)


@pytest.mark.parametrize(("metric", "law"), [("recall", recall_law), ("answer_nll", nll_law)])
def test_intervals_cover_the_law(metric: str, law: Any) -> None:
    """Of 60 noisy sweeps of 3 seeds, the 95 % interval of the slope holds the slope of most."""
    rng = np.random.default_rng(0)
    slope = {"recall": 0.5, "answer_nll": -0.2 * np.log(2)}[metric]
    x = [size for size in SLOTS for _ in range(3)]
    held = 0
    for _ in range(60):
        noise = rng.normal(0, 0.03, len(x))
        most = 1 if metric == "recall" else 9
        y = [min(law(at) * (1 + off), most) for at, off in zip(x, noise, strict=True)]
        low, high = fitted(metric, x, y).record()["slope_interval"]
        held += low <= slope <= high
    # Too narrow intervals would hold it less often, endless ones always.
    assert 46 <= held <= 60
    assert high - low < abs(slope)


def test_order_of_runs_changes_nothing() -> None:
    x = [size for size in SLOTS for _ in range(2)]
    y = [recall_law(at) * f for at, f in zip(x, [0.9, 1.0] * 5, strict=True)]
    there, back = fitted("recall", x, y), fitted("recall", x[::-1], y[::-1])
    np.testing.assert_array_equal(there.lines, back.lines)


def test_recall_of_exactly_0_and_1_has_a_finite_fit() -> None:
    fit = fitted("recall", list(SLOTS), [0.0, 0.0, 0.5, 1.0, 1.0])
    assert np.isfinite(fit.lines).all()
    low, middle, high = fit.predict(np.array([2.0**13, 2.0**16, 2.0**19]))[0]
    assert low < 0.01
    assert middle == pytest.approx(0.5, abs=0.01)
    assert high > 0.99


def test_logistic_fit_is_the_maximum_of_the_likelihood() -> None:
    """At the maximum, residuals add up to 0, with and without x."""
    rng = np.random.default_rng(1)
    y = rng.uniform(0, 1, len(SLOTS))
    fit = fitted("recall", list(SLOTS), list(y))
    left = y - fit.predict(fit.x)[0]
    assert abs(left.sum()) < 1e-5
    assert abs((left * np.log2(fit.x)).sum()) < 1e-4


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([], [], "0 measured points, a fit needs 3"),
        ([16, 16, 64], [0.1, 0.2, 0.3], "2 measured points, a fit needs 3"),
        ([16, 64, 256], [0.0, 0.0, 0.0], "the same value, 0, in every run"),
    ],
)
def test_too_little_to_fit(x: list[float], y: list[float], reason: str) -> None:
    assert fit_law("recall", x, y) == reason


def test_every_resample_has_two_points() -> None:
    counts = fits._draws(np.array([1.0, 2.0, 3.0]))
    assert counts.shape == (fits.RESAMPLES, 3)
    assert (counts.sum(axis=1) == 3).all()
    assert ((counts > 0).sum(axis=1) >= 2).all()


def make_run(base: str, slots: int, seed: int, flops: float, recall: float, nll: float) -> dict:
    return {
        "variant": f"{base}-slots{slots}",
        "base": base,
        "slots": slots,
        "seed": seed,
        "status": "ok",
        "flops_per_token": flops,
        "recall": {"question_heldout": recall},
        "answer_nll": {"question_heldout": nll},
    }


def make_sweep() -> list[dict]:
    """Dense models on known laws of FLOPs; memory is worth as much as 4 x compute at 2**16."""
    runs = []
    for n, base in enumerate(("a", "b", "c")):
        flops = 2.0 ** (16 + n)
        for seed in (0, 1):
            # The seeds lie around the law so that their mean is on it.
            off = (seed - 0.5) * 0.02
            runs.append(make_run(base, 0, seed, flops, recall_law(flops) + off, nll_law(flops)))
            for slots in (2**14, 2**16, 2**18):
                worth = flops * (slots / 2**16) * 4
                recall, nll = recall_law(worth) + off, nll_law(worth)
                runs.append(make_run(base, slots, seed, flops, recall, nll))
    return runs


def test_exchange_rates_of_known_laws() -> None:
    found = fit_sweep(make_sweep())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    rates = {(e["base"], e["slots"], e["metric"]): e for e in found["exchange"]}
    assert len(rates) == 3 * 3 * 2
    for (_, slots, metric), entry in rates.items():
        exact = {"recall": 0.02, "answer_nll": 1e-6}[metric]
        assert entry["times"] == pytest.approx(4 * slots / 2**16, rel=exact)
        assert entry["low"] <= entry["times"] <= entry["high"]
        assert entry["dense_flops"] == pytest.approx(entry["times"] * entry["flops_per_token"])

    assert not rates["b", 2**14, "answer_nll"]["extrapolated"]
    assert rates["b", 2**18, "answer_nll"]["extrapolated"]
    assert found["fits"]["slots"]["b"]["answer_nll"]["slope"] == pytest.approx(-0.2 * np.log(2))
    assert rates["a", 2**16, "recall"]["low"] < rates["a", 2**16, "recall"]["high"]


def test_runs_that_did_not_finish_are_left_out_and_named() -> None:
    runs = make_sweep()
    whole = fit_sweep(runs)
    # What it measured before it diverged does not count.
    broken = {**make_run("a", 0, 2, 2.0**16, 0.9, 0.1), "status": "diverged"}
    cell = {"variant": "c-slots1", "base": "c", "slots": 1, "seed": 0, "status": "killed"}
    found = fit_sweep([*runs, {**broken, "error": "nan"}, {**cell, "error": "signal 9"}])
    fit = found["fits"]["flops"]["recall"]
    assert fit.pop("left_out") == ["a-slots0, seed 2: diverged"]
    assert fit == {k: v for k, v in whole["fits"]["flops"]["recall"].items() if k != "left_out"}
    (entry,) = (e for e in found["exchange"] if (e["slots"], e["metric"]) == (1, "recall"))
    assert entry["times"] is None
    assert entry["reason"] == "no run finished"


def test_no_exchange_without_a_dense_fit() -> None:
    found = fit_sweep([run for run in make_sweep() if run["base"] != "c"])
    assert found["fits"]["flops"]["recall"]["reason"] == "2 measured points, a fit needs 3"
    assert {e["times"] for e in found["exchange"]} == {None}
    assert found["exchange"][0]["reason"] == ("no dense fit: 2 measured points, a fit needs 3")


def test_compute_that_dense_models_cannot_turn_into_recall() -> None:
    runs = make_sweep()
    for run in runs:
        if not run["slots"]:
            # Worse with more compute.
            run["recall"]["question_heldout"] = 1e4 / run["flops_per_token"]
        elif run["base"] == "a":
            run["answer_nll"]["question_heldout"] = 1e-300
    found = fit_sweep(runs)
    by_recall = [e for e in found["exchange"] if e["metric"] == "recall"]
    assert {e["reason"] for e in by_recall} == {"no compute gives this recall by the dense fit"}
    assert {e["high"] for e in by_recall} == {None}
    (entry, *_) = (e for e in found["exchange"] if (e["base"], e["metric"]) == ("a", "answer_nll"))
    assert entry["reason"] == "no compute gives this answer_nll by the dense fit"
