"""Does a training step of a table cost more when the table grows? Ours, and eager beside it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.inputs import make_reads
from benchmarks.request import Request
from benchmarks.sizes import Sizes
from benchmarks.step import DENSE, OURS, step_variants
from benchmarks.stepping import SteppedTable
from benchmarks.timing import Report, percentile, time_variants
from benchmarks.variant import Variant

# Eager steps of millions of rows take seconds each.
EAGER_REPEATS = 3


def measure_growth(
    sizes: Sizes, slot_counts: Sequence[int], *, repeats: int, report: Report
) -> dict[str, Any]:
    """Time a step at every table size: ours in turn, eager one size after the other.

    Args:
        sizes: All but the slots. A bf16 table.
        slot_counts: N of each table, rising.
        repeats: Times each of ours is timed.
        report: Takes lines of progress.

    Returns:
        For "ours" and "eager" a list with N, distinct rows and times, one entry a table.

    Raises:
        WrongResultError: A step is wrong.
    """
    points: dict[str, list[dict[str, Any]]] = {"ours": [], "eager": []}
    ours = [_point(OURS, sizes, count, "ours") for count in slot_counts]
    _time(points["ours"], ours, repeats, report)
    # Lets go of the tables before the next ones are made: together they would not fit.
    ours.clear()
    for count in slot_counts:
        eager = [_point(DENSE, sizes, count, "torch")]
        _time(points["eager"], eager, EAGER_REPEATS, report)
        eager.clear()
    return points


def _point(name: str, sizes: Sizes, count: int, only: Any) -> tuple[int, int, Variant]:  # noqa: ANN401
    request = Request(op="step", sizes=replace(sizes, slots=count))
    reads = make_reads(request)
    state = SteppedTable(count, reads.width, torch.bfloat16, request.device, only=only)
    (variant,) = step_variants((name,), state, reads)
    return count, reads.distinct, replace(variant, name=f"{name}, N = {count}")


def _time(
    points: list[dict[str, Any]],
    tables: Sequence[tuple[int, int, Variant]],
    repeats: int,
    report: Report,
) -> None:
    variants = [variant for _, _, variant in tables]
    for variant in variants:
        report(f"checking {variant.name}")
        variant.check()
    device = torch.device("cpu")
    samples = time_variants(variants, device, repeats=repeats, seconds=0.0, report=report)
    for count, distinct, variant in tables:
        times = samples[variant.name]
        median = percentile(times, 0.5)
        points.append(
            {
                "slots": count,
                "distinct_rows": distinct,
                "median_ms": median,
                "us_per_row": median / distinct * 1e3,
                "samples_ms": times,
            }
        )
