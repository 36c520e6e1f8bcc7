"""Compile every Triton kernel for an H100 (sm_90), on any machine, and report what it needs.

    python -m benchmarks sm90 [--out benchmarks/sm_90.json] [--only gather] [--each 2]

Registers and spilled bytes come from the report of the ptxas that ships with Triton, shared memory
from Triton.
No GPU is used and nothing is timed. Exits with 1 when a kernel spills more than it may.
"""

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

from memory_layers.common.errors import UserError

if os.environ.get("TRITON_INTERPRET") == "1":
    raise UserError("TRITON_INTERPRET=1 replaces the compiler. hint: unset it")

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.sm90_cases import Case, all_cases
from memory_layers.common import provenance

TARGET = GPUTarget("cuda", 90, 32)
# What an H100 has for one program: more cannot be launched.
SHARED_BYTES = 227 * 1024


@dataclass(frozen=True)
class Resources:
    """What one program (thread block) of a compiled kernel needs."""

    kernel: str
    case: str
    constants: dict[str, str]
    warps: int
    registers: int  # a thread
    spill_store_bytes: int  # a thread
    spill_load_bytes: int  # a thread
    shared_bytes: int

    @property
    def programs_per_processor(self) -> int:
        """Programs that fit one of the H100's multiprocessors at a time."""
        by_registers = 65536 // (-(-self.registers // 8) * 8 * 32 * self.warps)
        by_shared = 228 * 1024 // (self.shared_bytes + 1024)
        return min(by_registers, by_shared, 64 // self.warps, 32)


def compile_case(case: Case) -> Resources:
    """Compile one kernel with the arguments of one case and ask ptxas what it needs."""
    kernel = case.kernel
    names = [name for name in kernel.arg_names if name not in case.constants]
    assert len(names) == len(case.arguments), f"{kernel.__name__} takes {names}"
    types = dict(zip(names, case.arguments, strict=True))
    # As at a launch: addresses from torch, and numbers marked "i32:16", are multiples of 16.
    aligned = {n for n, t in types.items() if t.startswith("*") or t.endswith(":16")}
    source = ASTSource(
        fn=kernel,
        signature={n: types.get(n, "constexpr").removesuffix(":16") for n in kernel.arg_names},
        constexprs=dict(case.constants),
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(kernel.arg_names)
            if name in aligned
        },
    )
    log = io.StringIO()
    with redirect_stdout(log):
        compiled = triton.compile(source, target=TARGET, options=dict(case.options))

    def found(pattern: str) -> int:
        return max(int(number) for number in re.findall(pattern, log.getvalue()))

    return Resources(
        kernel=kernel.__name__,
        case=case.name,
        constants={name: str(value) for name, value in case.constants.items()},
        warps=compiled.metadata.num_warps,
        registers=found(r"Used (\d+) registers"),
        spill_store_bytes=found(r"(\d+) bytes spill stores"),
        spill_load_bytes=found(r"(\d+) bytes spill loads"),
        shared_bytes=compiled.metadata.shared,
    )


def some(cases: Sequence[Case], each: int | None) -> list[Case]:
    """Take cases of each kernel in turn from the front and the back of its list."""
    kernels: dict[str, list[Case]] = {}
    for case in cases:
        kernels.setdefault(case.kernel.__name__, []).append(case)
    if each is None:
        return list(cases)
    half = each // 2
    return [
        case
        for found in kernels.values()
        for case in (found if len(found) <= each else found[: each - half] + found[-half:])
    ]


def table(rows: Sequence[Resources]) -> str:
    """Lay the resources out as a Markdown table."""
    lines = [
        "| kernel | case | warps | registers | spilled bytes | shared KiB | programs / SM |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.kernel} | {r.case} | {r.warps} | {r.registers} "
        f"| {r.spill_store_bytes + r.spill_load_bytes} | {r.shared_bytes / 1024:.1f} "
        f"| {r.programs_per_processor} |"
        for r in rows
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Compile, print the table, write the file, and fail where a kernel does not fit.

    Args:
        arguments: What follows `python -m benchmarks sm90`.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--each", type=int, help="first and last cases of each kernel, so many")
    parser.add_argument("--spill", type=int, default=0, help="bytes that a thread may spill")
    options = parser.parse_args(arguments)
    knobs.nvidia.dump_ptxas_log = True  # prints the report of ptxas
    knobs.compilation.always_compile = True  # a cached kernel has no report
    cases = [case for case in all_cases() if options.only in case.kernel.__name__]
    rows = [compile_case(case) for case in some(cases, options.each)]
    print(table(rows))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        result = {
            "target": "sm_90",
            "versions": provenance.versions("torch", "triton"),
            "commit": provenance.commit(),
            "command": " ".join(["python", "-m", "benchmarks", "sm90", *arguments]),
            "kernels": [
                {**asdict(row), "programs_per_processor": row.programs_per_processor}
                for row in rows
            ],
        }
        options.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    bad = [
        row
        for row in rows
        if max(row.spill_store_bytes, row.spill_load_bytes) > options.spill
        or row.shared_bytes > SHARED_BYTES
    ]
    for row in bad:
        print(f"does not fit: {row.kernel}, {row.case}", file=sys.stderr)
    return 1 if bad else 0
