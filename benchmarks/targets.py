"""The speed that this project wants to reach on a CPU, measured row by row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from benchmarks import find, layer, read, step, tables, write
from benchmarks.copying import PREFIX
from benchmarks.measure import find_variant
from benchmarks.target_runs import GROUPS, Found, Plan, multiplies_bf16
from benchmarks.timing import Report

Row = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """One row of the table.

    Attributes:
        what: The first column.
        limit: The figure to reach.
        at_most: The figure must not be above the limit, instead of not below.
        unit: Written after the figure.
        group: What is run to measure it.
    """

    what: str
    limit: float
    unit: str
    group: str
    at_most: bool = False

    @property
    def text(self) -> str:
        """The target as it is written."""
        return f"{'≤' if self.at_most else '≥'} {self.limit:g} {self.unit}"


ROWS: Mapping[str, Target] = MappingProxyType(
    {
        "read_write": Target(
            "READ + WRITE in training over the faster eager baseline", 14, "×", "step"
        ),
        "growth": Target(
            "READ + WRITE per touched row, largest table over smallest", 1.3, "×", "growth",
            at_most=True,
        ),
        "read_fp32": Target("READ from an fp32 table over embedding_bag fp32", 0.9, "×", "read"),
        "read_bf16": Target("READ from a bf16 table over embedding_bag fp32", 1.6, "×", "read"),
        "write": Target("WRITE, share of a streaming copy", 0.8, "of a copy", "write"),
        "find_selection": Target("FIND, selection alone over three topk", 5, "×", "find"),
        "find_fp32": Target("FIND in fp32 over matmul and three topk", 2.2, "×", "find"),
        "find_bf16": Target("FIND in bf16 over matmul and three topk", 4, "×", "find"),
        "layer": Target("Memory layer in training over eager PyTorch", 6, "×", "layer"),
        "memory": Target(
            "Extra memory of a training step over T (2 J + V) numbers", 1.05, "×", "memory",
            at_most=True,
        ),
        "compile": Target(
            "First compilation of a training step, empty cache", 20, "s", "compile", at_most=True
        ),
    }
)  # fmt: skip


def measure_targets(
    rows: Sequence[str], report: Report, emit: Callable[[Row], None], plan: Plan | None = None
) -> dict[str, Any]:
    """Measure rows of the table, each group of rows in one run.

    Args:
        rows: Names in ROWS.
        report: Takes lines of progress.
        emit: Takes each row when it is measured.
        plan: Other sizes than the table's.

    Returns:
        The rows, and what each group measured.

    Raises:
        WrongResultError: What is measured is wrong.
    """
    plan = Plan() if plan is None else plan
    measured: list[Row] = []
    groups: dict[str, Found] = {}
    for name, run in GROUPS.items():
        wanted = [row for row in ROWS if row in rows and ROWS[row].group == name]
        if any(_unmeasurable(row) is None for row in wanted):
            groups[name] = run(plan, report)
        for row in wanted:
            measured.append(_judge(row, plan, groups.get(name)))
            emit(measured[-1])
    return {"rows": measured, "groups": groups}


def target_line(row: Row) -> str:
    """Write a row as a line: what, figure, target, verdict."""
    return f"{row['what']} ({row['size']}): {row['figure'] or '–'}, target {row['target']}: " + (
        tables.verdict(row)
    )


def _unmeasurable(row: str) -> str | None:
    if row == "find_bf16" and not multiplies_bf16():
        return "this CPU has no bf16 products (avx512_bf16, amx_bf16)"
    return None


def _judge(name: str, plan: Plan, found: Found | None) -> Row:
    """Take a row's figure out of what its group measured, and hold it to the target."""
    target = ROWS[name]
    row: Row = {
        "row": name,
        "what": target.what,
        "size": _size(name, plan),
        "figure": None,
        "value": None,
        "limit": target.limit,
        "target": target.text,
        "verdict": "not measured here",
        "reason": _unmeasurable(name),
    }
    if found is None or row["reason"] is not None:
        return row
    value, figure = _FIGURES[name](found)
    row |= {"value": value, "figure": figure, "verdict": "falls short"}
    if value <= target.limit if target.at_most else value >= target.limit:
        row["verdict"] = "holds"
    return row


def _size(name: str, plan: Plan) -> str:
    sizes = plan.sizes
    rows = f"T = {sizes.tokens}, J = {sizes.reads}"
    keys = f"M = {sizes.sub_keys}, H = {sizes.heads}, K = {sizes.top_k}, T = {sizes.tokens}"
    special = {
        "growth": f"N = {', '.join(map(str, plan.growth))}, V = {plan.growth_width}, {rows}, bf16",
        "layer": f"D = V = {sizes.value_dim}, {keys}",
        "memory": f"N = {', '.join(map(str, plan.memory_slots))}, V = {sizes.value_dim}, "
        f"T = {plan.memory_tokens}, J = {sizes.reads}",
        "compile": "an fp32 and a bf16 table",
    }
    if name in special:
        return special[name]
    if ROWS[name].group == "find":
        return f"{keys}, C = {sizes.half_dim}"
    return f"N = {sizes.slots}, V = {sizes.value_dim}, {rows}, uniform slots"


def _speedup(name: str) -> Callable[[Found], tuple[float, str]]:
    def figure(found: Found) -> tuple[float, str]:
        variant = find_variant(found, name)
        return variant["speedup"], f"{variant['speedup']:.2f} × ({_ms(variant)})"

    return figure


def _read(name: str) -> Callable[[Found], tuple[float, str]]:
    def figure(found: Found) -> tuple[float, str]:
        ours = find_variant(found, name)
        bag = find_variant(found, f"{read.BAG} float32")
        ratio = bag["median_ms"] / ours["median_ms"]
        return ratio, f"{ratio:.2f} × ({_ms(ours)}, {ours['share_of_copy']:.0%} of a copy)"

    return figure


def _write(found: Found) -> tuple[float, str]:
    ours = find_variant(found, write.OURS)
    share = ours["share_of_copy"]
    plain = find_variant(found, f"{PREFIX} (torch)")["gbs"]
    return share, (
        f"{share:.2f} of the fastest copy, {ours['gbs'] / plain:.2f} of torch's "
        f"({_ms(ours)}, {ours['gbs']:.1f} GB/s)"
    )


def _growth(found: Found) -> tuple[float, str]:
    ratios = {kind: points[-1]["us_per_row"] / points[0]["us_per_row"]
              for kind, points in found.items()}  # fmt: skip
    curves = {
        kind: ", ".join(tables.number(point["us_per_row"]) for point in points)
        for kind, points in found.items()
    }
    return ratios["ours"], (
        f"{ratios['ours']:.2f} × ({curves['ours']} µs a row; eager {ratios['eager']:.2f} ×, "
        f"{curves['eager']} µs)"
    )


def _memory(found: Found) -> tuple[float, str]:
    shares = [(table["pending"] + table["growth"]) / table["factors"] for table in found["tables"]]
    return max(shares), f"{', '.join(f'{share:.3f}' for share in shares)} ×"


def _compile(found: Found) -> tuple[float, str]:
    seconds = found["cold"] - found["warm"]
    return (
        seconds,
        f"{seconds:.1f} s ({found['cold']:.1f} s, and {found['warm']:.1f} s when cached)",
    )


def _ms(variant: Mapping[str, Any]) -> str:
    return f"{tables.number(variant['median_ms'])} ms"


_FIGURES: Mapping[str, Callable[[Found], tuple[float, str]]] = MappingProxyType(
    {
        "read_write": _speedup(step.OURS),
        "growth": _growth,
        "read_fp32": _read(f"{read.SUM} float32"),
        "read_bf16": _read(f"{read.SUM} bfloat16"),
        "write": _write,
        "find_selection": _speedup(find.SELECTION),
        "find_fp32": _speedup(f"{find.OURS} float32"),
        "find_bf16": _speedup(f"{find.OURS} bfloat16"),
        "layer": _speedup(layer.OURS),
        "memory": _memory,
        "compile": _compile,
    }
)
