"""What is run to measure the table of targets: each suite once, for all rows it answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.footprint import measure_compilation, measure_memory
from benchmarks.growth import measure_growth
from benchmarks.measure import DEFAULT_SECONDS, measure
from benchmarks.request import Request
from benchmarks.sizes import Sizes
from benchmarks.suites import SUITES
from benchmarks.timing import Report

Found = dict[str, Any]


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


def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16 numbers."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text("utf-8") if info.is_file() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _suite(op: str, repeats: int, sizes: Sizes, plan: Plan, report: Report) -> Found:
    request = Request(op=op, sizes=sizes)
    report(f"inputs of {op}")
    suite = SUITES[op](request)
    return measure(suite, request.device, repeats=repeats, seconds=plan.seconds, report=report)


def _run_step(plan: Plan, report: Report) -> Found:
    return _suite("step", plan.few, plan.sizes, plan, report)


def _run_growth(plan: Plan, report: Report) -> Found:
    sizes = replace(plan.sizes, value_dim=plan.growth_width, dtype="bfloat16")
    return measure_growth(sizes, plan.growth, repeats=plan.many, report=report)


def _run_read(plan: Plan, report: Report) -> Found:
    return _suite("read", plan.many, replace(plan.sizes, dtype="both"), plan, report)


def _run_write(plan: Plan, report: Report) -> Found:
    return _suite("write", plan.few, plan.sizes, plan, report)


def _run_find(plan: Plan, report: Report) -> Found:
    dtype = "both" if multiplies_bf16() else "float32"
    return _suite("find", plan.few, replace(plan.sizes, dtype=dtype), plan, report)


def _run_layer(plan: Plan, report: Report) -> Found:
    return _suite("layer", plan.few, plan.sizes, plan, report)


def _run_memory(plan: Plan, report: Report) -> Found:
    report("memory of a step, in processes of their own")
    sizes = (plan.memory_tokens, plan.sizes.reads, plan.sizes.value_dim)
    return {"tables": [{"slots": n, **measure_memory(n, *sizes)} for n in plan.memory_slots]}


def _run_compile(_plan: Plan, report: Report) -> Found:
    report("compilation, in processes of their own")
    return dict(measure_compilation())


GROUPS: Mapping[str, Callable[[Plan, Report], Found]] = MappingProxyType(
    {
        "step": _run_step,
        "growth": _run_growth,
        "read": _run_read,
        "write": _run_write,
        "find": _run_find,
        "layer": _run_layer,
        "memory": _run_memory,
        "compile": _run_compile,
    }
)
