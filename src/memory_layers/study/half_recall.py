"""Exposures for half recall: how many statements of a fact a model needs to recall half of them.

The recall r_k of a variant, the mean over facts and seeds, is made monotone in k by isotonic
regression, weighted by facts (what is read more often is recalled no less, so that a dip is noise).
Between neighbouring numbers of statements a < b it is a straight line, over log2 k for a >= 1, and
over k itself for a = 0, which has no logarithm. With s = (1/2 - r_a) / (r_b - r_a), where
r_a < 1/2 <= r_b, half of the facts are recalled at

    k = a (b / a)^s    for a >= 1,        k = s b    for a = 0.

Where no subject has k = 0, r_0 is taken as 0. If r_0 >= 1/2, k is 0: guessing is enough. If half is
not reached at the largest k, the number is not known: it is above it, and ratios with it are
bounds. The same is done in every draw of exposure.py, and intervals are percentiles of the draws.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from memory_layers.study.exposure import Curves, pairs_of
from memory_layers.study.fits import interval
from memory_layers.study.intervals import finite

# Recall is a sum of fractions, and half a share that it may be exactly.
_HALF = 0.5 - 1e-12


def half_rows(curves: Curves) -> list[dict[str, Any]]:
    """Return how many exposures each variant needs for half recall.

    Returns:
        `variant`, `wording`, `seeds`, `exposures`, `low` and `high`, the ends of its interval, each
        None where it is above `most`, the largest number of statements that was tried.
    """
    rows = []
    for variant, seeds in curves.seeds.items():
        drawn = _needed(curves, variant)
        low, high = interval(drawn[1:])
        ends = {"exposures": drawn[0], "low": low, "high": high}
        rows.append({
            "variant": variant, "wording": curves.wording, "seeds": len(seeds),
            **{name: finite(float(value)) for name, value in ends.items()},
            "most": int(curves.levels[-1]),
        })  # fmt: skip
    return rows


def half_ratios(curves: Curves, subjects: Sequence[str]) -> list[dict[str, Any]]:
    """Return how many times as many exposures as some variants each other one needs.

    Above 1 the variant needs fewer. Where one of the two does not reach half recall, the ratio has
    a bound, that with the largest number of statements in its place; in draws both bounds of
    the ratio count, the lower one for `low` and the upper one for `high`.

    Returns:
        `variant`, `reference`, `wording`, `seeds` that both have, `ratio` (None if neither reaches
        half, or one of them without a statement), `bound` (">" or "<" where `ratio` is a bound, or
        ""), and `low` and `high` (None: without bound).
    """
    rows = []
    for subject, other, seeds in pairs_of(curves, subjects):
        own, theirs = (_needed(curves, name, seeds) for name in (subject, other))
        most = curves.levels[-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            lower = np.minimum(theirs, most) / own
            upper = theirs / np.minimum(own, most)
        # Where neither needs a statement, any ratio is possible.
        lower = np.where(np.isnan(lower), 0, lower)
        upper = np.where(np.isnan(upper), np.inf, upper)
        ratio, bound = float(upper[0]), ""
        if np.isinf(theirs[0]):
            ratio, bound = float(lower[0]), ">"
        elif np.isinf(own[0]):
            bound = "<"
        known = 0 < ratio < np.inf and min(own[0], theirs[0]) < np.inf
        rows.append({
            "variant": subject, "reference": other, "wording": curves.wording,
            "seeds": len(seeds), "ratio": ratio if known else None,
            "bound": bound if known else "", "low": finite(float(interval(lower[1:])[0])),
            "high": finite(float(interval(upper[1:])[1])),
        })  # fmt: skip
    return rows


def exposures_for_half(levels: np.ndarray, recall: np.ndarray, facts: np.ndarray) -> np.ndarray:
    """Return the exposures at which recall reaches half: the equation is above.

    Args:
        levels: [K], numbers of statements, ascending.
        recall: [..., K].
        facts: [K], the weight of each.

    Returns:
        [...] float64, infinite where half is not reached.
    """
    fitted = monotone(recall, facts)
    if levels[0] > 0:
        levels = np.concatenate([[0], levels])
        fitted = np.concatenate([np.zeros_like(fitted[..., :1]), fitted], axis=-1)
    reached = fitted >= _HALF
    above = reached.argmax(axis=-1)
    below = np.maximum(above - 1, 0)
    high, low = (
        np.take_along_axis(fitted, at[..., None], axis=-1)[..., 0] for at in (above, below)
    )
    a, b = levels[below], levels[above]
    share = np.where(above > 0, (0.5 - low) / np.where(above > 0, high - low, 1), 0)
    share = np.clip(share, 0, 1)
    needed = np.where(a > 0, a * (b / np.maximum(a, 1)) ** share, share * b)
    return np.where(reached.any(axis=-1), needed, np.inf)


def monotone(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the non-decreasing values nearest to some, by weighted squares.

    The value at i is the largest, over starts a <= i, of the smallest weighted mean of a stretch
    from a to some b >= i. In this form many rows are fitted at once.

    Args:
        values: [..., K].
        weights: [K], above 0.

    Returns:
        [..., K] float64.
    """
    sums = np.cumsum(values * weights, axis=-1)
    sums = np.concatenate([np.zeros_like(sums[..., :1]), sums], axis=-1)
    total = np.concatenate([[0.0], np.cumsum(weights)])
    fitted = np.full(values.shape, -np.inf)
    for a in range(len(weights)):
        means = (sums[..., a + 1 :] - sums[..., a : a + 1]) / (total[a + 1 :] - total[a])
        smallest = np.minimum.accumulate(means[..., ::-1], axis=-1)[..., ::-1]
        fitted[..., a:] = np.maximum(fitted[..., a:], smallest)
    return fitted


def _needed(curves: Curves, variant: str, seeds: Sequence[int] | None = None) -> np.ndarray:
    recall = curves.recall_of(variant, seeds)
    return exposures_for_half(curves.levels, recall, curves.facts)
