"""The speed that this project wants to reach on a CPU: how each row is measured and judged."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch

from benchmarks.cases import SUITES, find, layer, read, step
from benchmarks.footprint import measure_compilation, measure_memory
from benchmarks.harness import (
    COPY,
    DEFAULT_SECONDS,
    Report,
    Variant,
    find_variant,
    measure,
    percentile,
    time_variants,
)
from benchmarks.inputs import Request, Sizes, make_reads
from benchmarks.results import NONE, three_digits

# Eager steps of millions of rows take seconds each.
EAGER_REPEATS = 3

Row = dict[str, Any]
Found = dict[str, Any]
# A figure as a number, and as it is written.
Figure = tuple[float, str]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of the table of targets, and how often each is timed.

    Attributes:
        sizes: Of every row but growth.
        growth: N of the tables of the growth row.
        growth_width: V of these.
        memory_tokens: T of the memory row: so many that the kernel's count of pages is exact
            enough for 5 %.
        memory_slots: N of the memory row, two tables.
        few: Repeats of suites with a baseline that takes seconds.
        many: Repeats of the others.
        seconds: Time spent on a suite, at least.
    """

    sizes: Sizes = field(default_factory=Sizes)
    growth: tuple[int, ...] = (2**18, 2**20, 2**22)
    growth_width: int = 256
    memory_tokens: int = 2**14
    memory_slots: tuple[int, ...] = (2**18, 2**20)
    few: int = 9
    many: int = 15
    seconds: float = DEFAULT_SECONDS


@dataclass(frozen=True)
class Target:
    """One row of the table.

    Attributes:
        what: The first column.
        limit: The figure to reach.
        unit: Written after the figure.
        group: What is run to measure it, a name in GROUPS.
        figure: Takes the figure out of what the group measured.
        at_most: The figure must not be above the limit, instead of not below.
    """

    what: str
    limit: float
    unit: str
    group: str
    figure: Callable[[Found], Figure]
    at_most: bool = False

    @property
    def text(self) -> str:
        """The target as it is written."""
        return f"{'≤' if self.at_most else '≥'} {self.limit:g} {self.unit}"

    def verdict(self, value: float) -> str:
        """Judge a figure."""
        reached = value <= self.limit if self.at_most else value >= self.limit
        return "holds" if reached else "falls short"


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
    figure = row["figure"] or NONE
    return f"{row['what']} ({row['size']}): {figure}, target {row['target']}: {verdict(row)}"


def verdict(row: Mapping[str, Any]) -> str:
    """Return `holds`, `falls short`, or `not measured here` with the reason."""
    return row["verdict"] if row["reason"] is None else f"{row['verdict']}: {row['reason']}"


def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16 numbers."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text("utf-8") if info.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


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
    if found is not None and row["reason"] is None:
        value, figure = target.figure(found)
        row |= {"value": value, "figure": figure, "verdict": target.verdict(value)}
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


def _suite(
    op: str, plan: Plan, report: Report, *, repeats: Literal["few", "many"], dtype: str = "float32"
) -> Found:
    request = Request(op=op, sizes=replace(plan.sizes, dtype=dtype))
    report(f"inputs of {op}")
    return measure(
        SUITES[op](request),
        request.device,
        repeats=getattr(plan, repeats),
        seconds=plan.seconds,
        report=report,
    )


def _find(plan: Plan, report: Report) -> Found:
    dtype = "both" if multiplies_bf16() else "float32"
    return _suite("find", plan, report, repeats="few", dtype=dtype)


def _memory(plan: Plan, report: Report) -> Found:
    report("memory of a step, in processes of their own")
    sizes = (plan.memory_tokens, plan.sizes.reads, plan.sizes.value_dim)
    return {"tables": [{"slots": n, **measure_memory(n, *sizes)} for n in plan.memory_slots]}


def _compile(_plan: Plan, report: Report) -> Found:
    report("compilation, in processes of their own")
    return dict(measure_compilation())


def _growth(plan: Plan, report: Report) -> Found:
    """Time a step at every table size: ours in turn, eager one size after the other."""
    ours = _points(step.STEP, "ours", plan, plan.growth, plan.many, report)
    # Together these tables would not fit.
    eager = (
        _points(step.STEP_DENSE, "torch", plan, (count,), EAGER_REPEATS, report)
        for count in plan.growth
    )
    return {"ours": ours, "eager": list(chain.from_iterable(eager))}


def _points(
    name: str,
    only: Literal["ours", "torch"],
    plan: Plan,
    counts: Sequence[int],
    repeats: int,
    report: Report,
) -> list[dict[str, Any]]:
    cpu = torch.device("cpu")
    steps: dict[int, tuple[int, Variant]] = {}
    for count in counts:
        sizes = replace(plan.sizes, slots=count, value_dim=plan.growth_width, dtype="bfloat16")
        reads = make_reads(Request(op="step", sizes=sizes))
        state = step.SteppedTable(count, reads.width, torch.bfloat16, cpu, only=only)
        (variant,) = step.step_variants((name,), state, reads)
        report(f"checking {name}, N = {count}")
        variant.check()
        steps[count] = reads.distinct, replace(variant, name=f"{name}, N = {count}")
    variants = [variant for _, variant in steps.values()]
    samples = time_variants(variants, cpu, repeats=repeats, seconds=0.0, report=report)
    points = []
    for count, (distinct, variant) in steps.items():
        median = percentile(samples[variant.name], 0.5)
        points.append(
            {
                "slots": count,
                "distinct_rows": distinct,
                "median_ms": median,
                "us_per_row": median / distinct * 1e3,
                "samples_ms": samples[variant.name],
            }
        )
    return points


GROUPS: Mapping[str, Callable[[Plan, Report], Found]] = MappingProxyType(
    {
        "step": partial(_suite, "step", repeats="few"),
        "growth": _growth,
        "read": partial(_suite, "read", repeats="many", dtype="both"),
        "write": partial(_suite, "write", repeats="few"),
        "find": _find,
        "layer": partial(_suite, "layer", repeats="few"),
        "memory": _memory,
        "compile": _compile,
    }
)


def _speedup(name: str) -> Callable[[Found], Figure]:
    def figure(found: Found) -> Figure:
        variant = find_variant(found, name)
        return variant["speedup"], f"{variant['speedup']:.2f} × ({_ms(variant)})"

    return figure


def _read_speedup(dtype: str) -> Callable[[Found], Figure]:
    def figure(found: Found) -> Figure:
        ours = find_variant(found, f"{read.SUM} {dtype}")
        bag = find_variant(found, f"{read.BAG} float32")
        ratio = bag["median_ms"] / ours["median_ms"]
        return ratio, f"{ratio:.2f} × ({_ms(ours)}, {ours['share_of_copy']:.0%} of a copy)"

    return figure


def _write_share(found: Found) -> Figure:
    ours = find_variant(found, step.WRITE)
    share = ours["share_of_copy"]
    plain = find_variant(found, f"{COPY} (torch)")["gbs"]
    return share, (
        f"{share:.2f} of the fastest copy, {ours['gbs'] / plain:.2f} of torch's "
        f"({_ms(ours)}, {ours['gbs']:.1f} GB/s)"
    )


def _growth_ratio(found: Found) -> Figure:
    per_row = {kind: [point["us_per_row"] for point in points] for kind, points in found.items()}
    ours, eager = (per_row[kind][-1] / per_row[kind][0] for kind in ("ours", "eager"))
    curves = {kind: ", ".join(map(three_digits, curve)) for kind, curve in per_row.items()}
    return ours, (
        f"{ours:.2f} × ({curves['ours']} µs a row; eager {eager:.2f} ×, {curves['eager']} µs)"
    )


def _memory_share(found: Found) -> Figure:
    shares = [(table["pending"] + table["growth"]) / table["factors"] for table in found["tables"]]
    return max(shares), f"{', '.join(f'{share:.3f}' for share in shares)} ×"


def _compile_seconds(found: Found) -> Figure:
    cold, warm = found["cold"], found["warm"]
    return cold - warm, f"{cold - warm:.1f} s ({cold:.1f} s, and {warm:.1f} s when cached)"


def _ms(variant: Mapping[str, Any]) -> str:
    return f"{three_digits(variant['median_ms'])} ms"


ROWS: Mapping[str, Target] = MappingProxyType(
    {
        "read_write": Target(
            "READ + WRITE in training over the faster eager baseline", 14, "×", "step",
            _speedup(step.STEP),
        ),
        "growth": Target(
            "READ + WRITE per touched row, largest table over smallest", 1.3, "×", "growth",
            _growth_ratio, at_most=True,
        ),
        "read_fp32": Target(
            "READ from an fp32 table over embedding_bag fp32", 0.9, "×", "read",
            _read_speedup("float32"),
        ),
        "read_bf16": Target(
            "READ from a bf16 table over embedding_bag fp32", 1.6, "×", "read",
            _read_speedup("bfloat16"),
        ),
        "write": Target(
            "WRITE, share of a streaming copy", 0.8, "of a copy", "write", _write_share
        ),
        "find_selection": Target(
            "FIND, selection alone over three topk", 5, "×", "find", _speedup(find.SELECTION)
        ),
        "find_fp32": Target(
            "FIND in fp32 over matmul and three topk", 2.2, "×", "find",
            _speedup(f"{find.OURS} float32"),
        ),
        "find_bf16": Target(
            "FIND in bf16 over matmul and three topk", 4, "×", "find",
            _speedup(f"{find.OURS} bfloat16"),
        ),
        "layer": Target(
            "Memory layer in training over eager PyTorch", 6, "×", "layer", _speedup(layer.OURS)
        ),
        "memory": Target(
            "Extra memory of a training step over T (2 J + V) numbers", 1.05, "×", "memory",
            _memory_share, at_most=True,
        ),
        "compile": Target(
            "First compilation of a training step, empty cache", 20, "s", "compile",
            _compile_seconds, at_most=True,
        ),
    }
)  # fmt: skip
