"""Laws fitted to a sweep: recall and answer NLL over slots and over FLOPs, and the exchange rate.

Two forms, each with an intercept and a slope over the binary logarithm of slots or FLOPs:

- Recall is a share. Its logit is a straight line, so that a curve stays between 0 and 1 and
  flattens at both ends; a straight line in recall itself would leave that range within the sweep.
  The line is the maximum of the binomial likelihood, which weighs runs by the recall they are off
  and so has a use for a run at exactly 0 or 1, whose logit is not a number.
- Answer NLL is a power law, the usual form of scaling laws: its logarithm is a straight line
  (least squares), so that it never falls below 0.

Intervals are percentiles over runs drawn with replacement, which holds the spread of seeds and
how badly the form fits. Next: scale.py, which asks for the fits; plots/sweep.py, which draws them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.special import expit, logit

from memory_layers.study.intervals import LEVEL, finite
from memory_layers.study.metrics import METRICS, Run, measured
from memory_layers.study.summary import finished, status

RESAMPLES = 1000
MIN_POINTS = 3
_SEED = 20241212
_GRID = 41
_MOST_STEPS = 200


@dataclass(frozen=True)
class Law:
    """The form of a law: what of a metric is a straight line.

    Attributes:
        key: Of the metric.
        name: The metric, in a sentence.
        of: What is a straight line, with a place for the metric.
        link: Computes it.
        inverse: Computes the metric from it.
    """

    key: str
    name: str
    of: str
    link: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]

    @property
    def title(self) -> str:
        """The metric, at the start of a sentence."""
        return self.name[0].upper() + self.name[1:]


LAWS: Mapping[str, Law] = MappingProxyType(
    {
        "recall": Law("question_heldout", "recall", "logit({})", logit, expit),
        "answer_nll": Law("answer_nll", "answer NLL", "ln({})", np.log, np.exp),
    }
)


@dataclass(frozen=True)
class Fit:
    """A law with its resamples. Row 0 is the fit to all runs, the other rows are resamples.

    Attributes:
        metric: A name of LAWS.
        lines: [1 + RESAMPLES, 2] float64, intercepts and slopes over log2(x).
        x: [n] float64, where runs were measured, ascending.
        y: [n] float64, what was measured.
    """

    metric: str
    lines: np.ndarray
    x: np.ndarray
    y: np.ndarray

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the metric at x [m] by every line: [1 + RESAMPLES, m] float64."""
        line = self.lines[:, :1] + self.lines[:, 1:] * np.log2(x)
        return LAWS[self.metric].inverse(line)

    def reach(self, y: np.ndarray) -> np.ndarray:
        """Return log2 of the x at which each line reaches its y.

        Args:
            y: [1 + RESAMPLES] float64, one value a line.

        Returns:
            [1 + RESAMPLES] float64. Infinite where a line that gets no better with x, or that
            ends short of y, never does.
        """
        law = LAWS[self.metric]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            where = (law.link(y) - self.lines[:, 0]) / self.lines[:, 1]
        improves = self.lines[:, 1] * METRICS[law.key].better > 0
        return np.where(improves & ~np.isnan(where), where, np.inf)

    def record(self) -> dict[str, Any]:
        """Return what results.json holds of the fit: the law, R^2 and a curve with its band."""
        intercept, slope = (float(value) for value in self.lines[0])
        grid = np.exp2(np.linspace(np.log2(self.x[0]), np.log2(self.x[-1]), _GRID))
        curves = self.predict(grid)
        low, high = interval(curves[1:])
        left = self.y - self.predict(self.x)[0]
        total = ((self.y - self.y.mean()) ** 2).sum()
        return {
            "form": f"{LAWS[self.metric].of.format(self.metric)} = intercept + slope * log2(x)",
            "intercept": intercept,
            "slope": slope,
            "intercept_interval": [float(end) for end in interval(self.lines[1:, 0])],
            "slope_interval": [float(end) for end in interval(self.lines[1:, 1])],
            "r2": float(1 - (left**2).sum() / total),
            "runs": len(self.x),
            "points": len(np.unique(self.x)),
            "curve": {
                name: values.tolist()
                for name, values in (("x", grid), ("y", curves[0]), ("low", low), ("high", high))
            },
        }


def fit_law(metric: str, x: Sequence[float], y: Sequence[float]) -> Fit | str:
    """Fit one law and its resamples.

    Args:
        metric: Of LAWS.
        x: Slots or FLOPs of each run, above 0.
        y: Its recall, in [0, 1], or its answer NLL, above 0.

    Returns:
        The fit, or the reason why there is none.
    """
    # Sorted, so that the draws do not depend on the order in which the runs ended.
    pairs = sorted(zip(x, y, strict=True))
    points = len({at for at, _ in pairs})
    if points < MIN_POINTS:
        return f"{points} measured points, a fit needs {MIN_POINTS}"
    if len({value for _, value in pairs}) == 1:
        return f"the same value, {pairs[0][1]:.4g}, in every run"
    xs, ys = np.array(pairs, dtype=np.float64).T
    logs = np.log2(xs)
    # Centred and scaled: the two parameters of a line are then all but independent.
    middle, width = logs.mean(), logs.std()
    counts = np.concatenate([np.ones((1, len(xs))), _draws(xs)])
    solve = _logistic_lines if metric == "recall" else _log_lines
    lines = solve((logs - middle) / width, ys, counts)
    slopes = lines[:, 1] / width
    return Fit(metric, np.stack([lines[:, 0] - slopes * middle, slopes], axis=1), xs, ys)


def fit_sweep(runs: Sequence[Run]) -> dict[str, Any]:
    """Fit every law of a sweep and the exchange rates.

    Args:
        runs: Entries of results.json, each with its `base` and `slots`.

    Returns:
        `fits`: of memory models over slots, `slots[base][metric]`, and of dense models over
        FLOPs per token, `flops[metric]`. Each is the record of a Fit, or `{"reason": ...}`, and
        lists the runs it is without in `left_out`. `exchange`: one entry a base, memory size and
        metric, see `_exchange`.
    """
    dense = [run for run in runs if not run["slots"]]
    with_memory = {
        base: [run for run in runs if run["base"] == base and run["slots"]]
        for base in dict.fromkeys(run["base"] for run in runs)
    }
    over_flops = {metric: _fit_runs(metric, dense, "flops_per_token") for metric in LAWS}
    return {
        "fits": {
            "resamples": RESAMPLES,
            "level": LEVEL,
            "slots": {
                base: {metric: _fit_runs(metric, own, "slots")[1] for metric in LAWS}
                for base, own in with_memory.items()
            },
            "flops": {metric: record for metric, (_, record) in over_flops.items()},
        },
        "exchange": [
            {
                "base": base,
                "slots": slots,
                "metric": metric,
                **_exchange(
                    metric, [run for run in own if run["slots"] == slots], over_flops[metric][0]
                ),
            }
            for base, own in with_memory.items()
            for slots in sorted({run["slots"] for run in own})
            for metric in LAWS
        ],
    }


def heldout(run: Run, metric: str) -> float | None:
    """Return a finished run's recall or answer NLL of held-out questions, None without one."""
    if not finished(run):
        return None
    value = measured(run, LAWS[metric].key)
    return None if value is not None and metric == "answer_nll" and value <= 0 else value


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the interval over axis 0, each the value of some resample."""
    low, high = np.quantile(
        values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0, method="inverted_cdf"
    )
    return low, high


def _fit_runs(metric: str, runs: Sequence[Run], place: str) -> tuple[Fit | str, dict[str, Any]]:
    """Fit what the runs measured over their `place`, and say which of them it is without."""
    pairs, left_out = [], []
    for run in runs:
        x, y = run.get(place), heldout(run, metric)
        if x and y is not None:
            pairs.append((x, y))
        else:
            why = status(run) if not finished(run) else f"no {metric} was measured"
            left_out.append(f"{run['variant']}, seed {run['seed']}: {why}")
    fit = fit_law(metric, [x for x, _ in pairs], [y for _, y in pairs])
    record = {"reason": fit} if isinstance(fit, str) else fit.record()
    return fit, {**record, "left_out": left_out}


def _exchange(metric: str, runs: Sequence[Run], dense: Fit | str) -> dict[str, Any]:
    """Say how much dense compute one memory model is worth.

    Returns:
        `value`: mean over seeds. `flops_per_token`: of the memory model. `dense_flops`: of a
        dense model that the dense fit expects to do as well. `times`: their ratio, and `low` and
        `high`, its interval, where null is "without bound": the dense fit of a resample that does
        not improve with compute never gets there. `extrapolated`: dense_flops lies outside the
        measured range. Where there is no rate, `times` is null and `reason` says why.
    """
    done = sorted(
        (run["seed"], y, run["flops_per_token"])
        for run in runs
        if (y := heldout(run, metric)) is not None
    )
    values = np.array([y for _, y, _ in done])
    names = ("value", "flops_per_token", "dense_flops", "times", "low", "high", "extrapolated")
    found: dict[str, Any] = {**dict.fromkeys(names), "runs": len(done), "reason": None}
    if not done:
        return {**found, "reason": "no run finished"}
    mean = values.mean(keepdims=True)
    flops = sum(cost for _, _, cost in done) / len(done)
    found |= {"value": float(mean[0]), "flops_per_token": flops}
    if isinstance(dense, str):
        return {**found, "reason": f"no dense fit: {dense}"}
    rng = np.random.default_rng([_SEED, 1])
    drawn = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    with np.errstate(over="ignore"):
        needed = np.exp2(dense.reach(np.concatenate([mean, drawn])))
    low, high = (finite(float(end) / flops) for end in interval(needed[1:]))
    found |= {"low": low, "high": high}
    if not 0 < needed[0] < np.inf:
        return {**found, "reason": f"no compute gives this {metric} by the dense fit"}
    return {
        **found,
        "dense_flops": float(needed[0]),
        "times": float(needed[0]) / flops,
        "extrapolated": not dense.x[0] <= needed[0] <= dense.x[-1],
    }


def _draws(x: np.ndarray) -> np.ndarray:
    """Draw runs with replacement: how often each is in each resample, [RESAMPLES, n] float64.

    A draw of runs that all lie at one x has no slope and is drawn again.
    """
    rng = np.random.default_rng([_SEED, 0])
    _, place = np.unique(x, return_inverse=True)
    kept: list[np.ndarray] = []
    while sum(map(len, kept)) < RESAMPLES:
        draws = rng.integers(len(x), size=(RESAMPLES, len(x)))
        kept.append(draws[np.ptp(place[draws], axis=1) > 0])
    draws = np.concatenate(kept)[:RESAMPLES]
    rows = np.repeat(np.arange(RESAMPLES), len(x))
    counts = np.zeros((RESAMPLES, len(x)))
    np.add.at(counts, (rows, draws.ravel()), 1)
    return counts


def _log_lines(z: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Weighted least squares of ln(y) for each row of counts: [rows, 2] float64."""
    weights = counts / counts.sum(axis=1, keepdims=True)
    goal = np.log(y)
    mean_z, mean_y = weights @ z, weights @ goal
    slope = (weights @ (z * goal) - mean_z * mean_y) / (weights @ z**2 - mean_z**2)
    return np.stack([mean_y - slope * mean_z, slope], axis=1)


def _logistic_lines(z: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Maximise the binomial likelihood for each row of counts: [rows, 2] float64.

    Newton's method with a step size of its own for each row, halved where a step would lose. A
    trace of ridge keeps lines finite where runs at 0 and at 1 are cleanly apart.
    """
    ridge = 1e-7
    lines = np.zeros((len(counts), 2))
    size = np.ones(len(counts))
    design = np.stack([np.ones_like(z), z])

    def gain(lines: np.ndarray) -> np.ndarray:
        line = lines @ design
        return (counts * (y * line - np.logaddexp(0, line))).sum(1) - ridge / 2 * (lines**2).sum(1)

    best = gain(lines)
    for _ in range(_MOST_STEPS):
        share = expit(lines @ design)
        slope = (counts * (y - share)) @ design.T - ridge * lines
        curve = counts * share * (1 - share)
        a, b, c = curve.sum(1) + ridge, curve @ z, curve @ z**2 + ridge
        step = np.stack([c * slope[:, 0] - b * slope[:, 1], a * slope[:, 1] - b * slope[:, 0]], 1)
        step /= (a * c - b * b)[:, None]
        tried = lines + size[:, None] * step
        found = gain(tried)
        better = found >= best
        lines = np.where(better[:, None], tried, lines)
        best = np.where(better, found, best)
        size = np.where(better, np.minimum(1, 2 * size), size / 2)
        if (np.abs(step).max(axis=1) * size).max() < 1e-9:
            break
    return lines
