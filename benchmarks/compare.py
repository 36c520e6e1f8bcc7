"""Compare two result files: "same" inside the spread, else how much faster the second is."""

from collections.abc import Mapping
from typing import Any

from benchmarks import tables
from memory_layers.common.errors import UserError

# What must agree for a difference in time to mean anything.
SAME = ("op", "device", "threads", "sizes", "slots", "impl")
HEAD = ("What", "A, ms", "B, ms", "B against A")


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Return a table of two result files of the same benchmark.

    Args:
        a: The earlier one, as `read_result` returned it.
        b: The later one.

    Raises:
        UserError: They are of different benchmarks, or hold no times.
    """
    for name in SAME:
        if a.get(name) != b.get(name):
            raise UserError(
                f"the results differ in {name}: {a.get(name)} and {b.get(name)}. hint: compare "
                "runs of one benchmark on one machine"
            )
    if "variants" not in a["results"]:
        raise UserError(f"`{a['op']}` results hold no times. hint: compare results of a suite")
    variants_a, variants_b = ({v["name"]: v for v in r["results"]["variants"]} for r in (a, b))
    rows = []
    for name in [*variants_a, *(n for n in variants_b if n not in variants_a)]:
        if name in variants_a and name in variants_b:
            rows.append(_row(name, variants_a[name], variants_b[name]))
        else:
            rows.append(_lonely(name, variants_a.get(name), variants_b.get(name)))
    lines = [f"{label}: {tables.provenance(record)}" for label, record in (("A", a), ("B", b))]
    return "\n".join([*lines, "", tables.text(HEAD, rows)])


def _row(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[str, ...]:
    overlap = a["p20_ms"] <= b["p80_ms"] and b["p20_ms"] <= a["p80_ms"]
    ratio = a["median_ms"] / b["median_ms"]
    change = f"{ratio:.2f} × faster" if ratio >= 1 else f"{1 / ratio:.2f} × slower"
    return (name, _cell(a), _cell(b), "same" if overlap else change)


def _lonely(name: str, a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> tuple[str, ...]:
    return (name, _cell(a), _cell(b), "only in A" if b is None else "only in B")


def _cell(variant: Mapping[str, Any] | None) -> str:
    if variant is None:
        return tables.NONE
    low, high = tables.number(variant["p20_ms"]), tables.number(variant["p80_ms"])
    return f"{tables.number(variant['median_ms'])} ({low} to {high})"
