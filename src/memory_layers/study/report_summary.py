"""What the runs of a comparison add up to: one row of figures a variant."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from memory_layers.study.plots import finite

FORMS = (
    ("question_heldout", "Held-out questions"),
    ("question_shown", "Shown questions"),
    ("statement", "Statements"),
)
_COSTS = ("flops_per_token", "params_total", "params_active", "params_memory", "tokens", "seconds")


def summary_table(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Summarise the runs of each variant over its seeds.

    Args:
        results: The content of ``results.json``.

    Returns:
        One row a variant, in the order of the runs. ``seeds`` counts the finished runs and
        ``failed`` lists the others. ``question_heldout``, ``question_shown``, ``statement``,
        ``answer_nll`` (of held-out questions) and ``bits_stored`` are dicts of ``mean``,
        ``min``, ``max``, ``std`` (None for one seed) and ``n``, or None where nothing was
        measured. The other columns are means: ``flops_per_token``, ``params_total``,
        ``params_active``, ``params_memory``, ``tokens``, ``seconds``. ``flops_ratio`` is the
        ratio to the variant named in ``flops_base``: "dense", or the first one measured.
    """
    rows = []
    for variant, runs in by_variant(results).items():
        done = [run for run in runs if finished(run)]
        failed = [
            {"seed": run.get("seed"), "error": failure(run)} for run in runs if not finished(run)
        ]
        recall = [run.get("recall") or {} for run in done]
        row: dict[str, Any] = {"variant": variant, "seeds": len(done), "failed": failed}
        for form, _ in FORMS:
            row[form] = spread(entry.get(form) for entry in recall)
        row["answer_nll"] = spread(
            (run.get("answer_nll") or {}).get("question_heldout") for run in done
        )
        row["bits_stored"] = spread(run.get("bits_stored") for run in done)
        for key in _COSTS:
            found = spread(run.get(key) for run in done)
            row[key] = found["mean"] if found else None
        rows.append(row)
    measured = [row for row in rows if row["flops_per_token"]]
    dense = [row for row in measured if row["variant"] == "dense"]
    base = next(iter(dense or measured), None)
    for row in rows:
        flops = row["flops_per_token"]
        row["flops_base"] = base["variant"] if base else None
        row["flops_ratio"] = flops / base["flops_per_token"] if base and flops else None
    return rows


def by_variant(results: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Group all runs, failed ones too, by variant in order of appearance."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in results.get("runs") or ():
        groups.setdefault(str(run.get("variant")), []).append(run)
    return groups


def finished(run: Mapping[str, Any]) -> bool:
    """Tell whether a run reached its end and has measurements."""
    return run.get("status") in (None, "ok")


def failure(run: Mapping[str, Any]) -> str:
    """Return why a run is not finished, perhaps over several lines."""
    status = run.get("status")
    return str(run.get("error") or ("" if status == "failed" else f"status {status}"))


def spread(values: Iterable[object]) -> dict[str, Any] | None:
    """Return mean, min, max, std and n of the finite numbers, or None without any."""
    numbers = [number for value in values if (number := finite(value)) is not None]
    if not numbers:
        return None
    return {
        "mean": statistics.fmean(numbers),
        "min": min(numbers),
        "max": max(numbers),
        "std": statistics.stdev(numbers) if len(numbers) > 1 else None,
        "n": len(numbers),
    }
