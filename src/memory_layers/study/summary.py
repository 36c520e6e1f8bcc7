"""What the runs of a comparison add up to: one row of figures a variant, and who is above whom.

Next: plots/ and report/, which show these figures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.study.intervals import finite, spread
from memory_layers.study.metrics import METRICS, Run, measured

# Runs by variant.
Groups = Mapping[str, Sequence[Run]]


def summary_table(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Summarise the runs of each variant over its seeds.

    Args:
        results: The content of results.json.

    Returns:
        One row a variant, in the order of the runs. `seeds` counts the finished runs and `failed`
        lists the others with their `seed`, `status` and `error`. Each of METRICS is what `spread`
        returns or, of costs, a mean, and None where nothing was measured. `flops_ratio` and
        `seconds_ratio` are the ratios to the variant named in `base`: "dense", or the first
        one measured.
    """
    rows = []
    for variant, runs in by_variant(results).items():
        done = [run for run in runs if finished(run)]
        row: dict[str, Any] = {
            "variant": variant,
            "seeds": len(done),
            "failed": [
                {"seed": run.get("seed"), "status": status(run), "error": failure(run)}
                for run in runs
                if not finished(run)
            ],
        }
        for key, metric in METRICS.items():
            found = spread(measured(run, key) for run in done)
            row[key] = found if metric.better or not found else found["mean"]
        rows.append(row)
    costs = [row for row in rows if row["flops_per_token"]]
    dense = [row for row in costs if row["variant"] == "dense"]
    base = next(iter(dense or costs), None)
    for row in rows:
        row["base"] = base["variant"] if base else None
        for key, ratio in (("flops_per_token", "flops_ratio"), ("seconds", "seconds_ratio")):
            least = base[key] if base else None
            row[ratio] = row[key] / least if least and row[key] else None
    return rows


def comparisons(
    results: Mapping[str, Any], subjects: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Compare variants with memory against each other variant, paired over seeds.

    Runs with the same seed saw the same tokens in the same order, so their difference has less
    noise than the two means. Seeds that only one of the two finished are left out.

    Args:
        results: The content of results.json.
        subjects: Names of the variants to compare with all others. None: `memory_plus`, or
            without it every variant with memory parameters.

    Returns:
        One entry for each subject, other variant and measure that both have: `variant`,
        `reference`, `measure` (of METRICS), `seeds` (the pairs), `difference` (mean of variant -
        reference), `low` and `high` (its 95 % interval; None for one pair) and `verdict`: "above"
        or "below" where the interval excludes 0, "not distinguishable" where it does not, and
        "one seed" for one pair.

    Raises:
        UserError: A subject is no variant of the results.
    """
    groups = by_variant(results)
    if subjects is None:
        subjects = memory_variants(results)
    unknown = sorted(set(subjects) - set(groups))
    if unknown:
        raise UserError(
            f"subjects must be variants of the results, got {unknown}. hint: {', '.join(groups)}"
        )
    return [
        {"variant": subject, "reference": other, "measure": measure, **found}
        for subject in subjects
        for other in groups
        if other != subject
        for measure, metric in METRICS.items()
        if metric.paired and (found := _paired(groups[subject], groups[other], measure)) is not None
    ]


def memory_variants(results: Mapping[str, Any]) -> list[str]:
    """Return the variants to compare with all others: `memory_plus`, or all with memory."""
    groups = by_variant(results)
    kinds = results.get("kinds") or {}
    best = [name for name in groups if kinds.get(name, name) == "memory_plus"]
    return best or [
        name
        for name, runs in groups.items()
        if any(finite(run.get("params_memory")) for run in runs if finished(run))
    ]


def _paired(runs: Sequence[Run], others: Sequence[Run], measure: str) -> dict[str, Any] | None:
    first, second = (
        {
            run.get("seed"): value
            for run in group
            if finished(run) and (value := measured(run, measure)) is not None
        }
        for group in (runs, others)
    )
    pairs = spread(value - second[seed] for seed, value in first.items() if seed in second)
    if pairs is None:
        return None
    mean, half = pairs["mean"], pairs["half"]
    low, high = (None, None) if half is None else (mean - half, mean + half)
    found = {"difference": mean, "low": low, "high": high}
    judged = "one seed" if low is None or high is None else verdict(low, high)
    return {"seeds": pairs["n"], **found, "verdict": judged}


def verdict(low: float, high: float) -> str:
    """Say what the ends of the interval of a difference mean."""
    if low > 0:
        return "above"
    return "below" if high < 0 else "not distinguishable"


def mean_of(runs: Sequence[Run], key: str) -> float | None:
    """Return the mean of a measurement over some runs, None where none has it."""
    found = spread(measured(run, key) for run in runs)
    return found["mean"] if found else None


def by_variant(results: Mapping[str, Any]) -> dict[str, list[Run]]:
    """Group all runs, failed ones too, by variant in order of appearance."""
    groups: dict[str, list[Run]] = {}
    for run in results.get("runs") or ():
        groups.setdefault(str(run.get("variant")), []).append(run)
    return groups


def finished(run: Run) -> bool:
    """Tell whether a run reached its end and has measurements."""
    return run.get("status") in (None, "ok")


def status(run: Run) -> str:
    """Return how a run ended, in words: "ok", "failed", "diverged", "out of memory", "killed"."""
    return str(run.get("status") or "ok").replace("_", " ")


def failure(run: Run) -> str:
    """Return why a run is not finished, perhaps over several lines, or "" where it is not known."""
    return str(run.get("error") or "")
