"""What every Triton kernel needs on an H100 (sm_90), compiled on any machine.

Registers and spilled bytes come from the report of the ptxas that ships with Triton, shared memory
from Triton. No GPU is used and nothing is timed. The cases come first, a function an operation:
kernels with the types of their arguments as Triton names them, "*bf16", "*fp32", "i32", or "i32:16"
for a number that is a multiple of 16.
"""

import io
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.results import aligned

OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")

TARGET = GPUTarget("cuda", 90, 32)
# What an H100 has for one program: more cannot be launched.
SHARED_BYTES = 227 * 1024

HEAD = ("kernel and case", "warps", "registers", "spilled bytes", "shared KiB", "programs / SM")


class Case:
    """One kernel with the types of its arguments and the keyword arguments of its launch."""

    def __init__(self, name: str, kernel: Any, arguments: str, **launch: Any) -> None:  # noqa: ANN401
        self.name, self.kernel, self.arguments = name, kernel, arguments.split()
        self.constants = {n: v for n, v in launch.items() if n not in OPTIONS}
        self.options = {n: v for n, v in launch.items() if n in OPTIONS}


def find_cases() -> list[Case]:
    """FIND at the paper's sizes: M = 1024 and more, C = 64 to 512, K = 32; and at small ones."""
    from memory_layers.ops.find import triton as find
    from memory_layers.ops.find.triton_select import (
        best_sub_keys_kernel,
        lower_bounds_kernel,
        merge_halves_kernel,
        redo_sub_keys_kernel,
    )

    types = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    # dtype, T, C, k: the paper's, a decoding step, and the largest k.
    sizes = [
        *((dtype, 32768, width, 32) for dtype in ("bf16", "fp32") for width in (64, 256, 512)),
        ("fp16", 32768, 192, 32),
        *((dtype, 1, 256, 32) for dtype in ("bf16", "fp32")),
        *((dtype, 32768, 256, 128) for dtype in ("bf16", "fp32")),
    ]
    cases = []
    for dtype, tokens, width, k in sizes:
        name = f"{dtype} T={tokens} C={width} k={k}"
        shape = (tokens, 4, width, k, types[dtype])
        inputs, numbers = f"*{dtype} *{dtype}", "i32:16 i32:16 i32:16"
        cases += [
            Case(
                name,
                lower_bounds_kernel,
                f"{inputs} *fp32 i32:16 i32:16 fp32",
                **find.lower_bounds_constants(*shape),
            ),
            Case(
                name,
                best_sub_keys_kernel,
                f"{inputs} *fp32 *i64 *i32 *i64 *i8 {numbers}",
                HAS_BOUNDS=True,
                **find.best_sub_keys_constants(*shape),
            ),
            Case(
                name,
                redo_sub_keys_kernel,
                f"{inputs} *i64 *i32 *fp32 *i64 *i8 {numbers}",
                **find.redo_sub_keys_constants(*shape),
            ),
        ]
    cases += [
        Case(
            f"k={k}",
            merge_halves_kernel,
            "*i64 *fp32 *i64 i32:16 i32:16",
            **find.merge_halves_constants(4, k),
        )
        for k in (8, 32, 128)
    ]
    for dtype in types:
        for width in (64, 256, 512):
            blocks = find.gradient_blocks(width)
            cases += [
                Case(
                    f"{dtype} C={width}",
                    find.query_gradient_kernel,
                    f"*fp32 *i64 *{dtype} *{dtype} *i32 i32:16 i32:16",
                    HEADS=4, BLOCK_K=find.VECTORS, **blocks,
                ),
                Case(
                    f"{dtype} C={width}",
                    find.sub_key_gradient_kernel,
                    f"*i64 *i64 *fp32 *{dtype} *fp32 i32:16 i32",
                    K=32, BLOCK_E=find.VECTORS, **blocks,
                ),
            ]  # fmt: skip
    return cases


# Widths of the paper, the widest that a program owns whole, and two that must be masked.
WIDTHS = (256, 768, 1024, 2048, 4096, 20, 1000)


def aligned_to_16(width: int) -> str:
    """Name the type of a width or a stride."""
    return "i32:16" if width % 16 == 0 else "i32"


def read_cases() -> list[Case]:
    """READ at the paper's sizes: J = 128, V = 256 to 4096, all types."""
    from memory_layers.ops._triton import rows
    from memory_layers.ops.read import triton as read

    cases = []
    for width in WIDTHS:
        v = aligned_to_16(width)
        types = {"bf16": 2, "fp32": 4, **({"fp16": 2} if width == 1024 else {})}
        for dtype, item_bytes in types.items():
            name = f"{dtype} V={width}"
            sums = {**rows.row_blocks(width), "READS": 128, "CHUNK": rows.CHUNK}
            factors = f"*i64 *{dtype} *{dtype} *fp32"
            cases += [
                Case(
                    name,
                    read.gather_sum_kernel,
                    f"*{dtype} *i64 *{dtype} *{dtype} i32:16 {v} {v} i32:16",
                    **read.sum_blocks(128, width, item_bytes),
                ),
                Case(
                    name,
                    read.gather_dot_kernel,
                    f"*{dtype} *i64 *{dtype} *fp32 i32:16 {v} {v} {v} i32:16",
                    **read.dot_blocks(128, width, item_bytes),
                ),
                Case(name, rows.partial_sums_kernel, f"{factors} {v} {v}", **sums),
                Case(
                    name,
                    rows.dense_sums_kernel,
                    f"{factors} i32 {v} {v} *fp32 i32:16",
                    **sums,
                    TILE=rows.TILE,
                ),
            ]
    return cases


def write_cases() -> list[Case]:
    """WRITE at the paper's sizes: each rule, with each way to keep and round a row."""
    from memory_layers.ops._triton import rows
    from memory_layers.ops.write import triton as write

    rules = {
        "AdamW": {"FIRST": True, "SECOND": True, "ROWWISE": False},
        "AdamW, ahead": {"FIRST": True, "SECOND": True, "ROWWISE": False},
        "AdamW, row-wise": {"FIRST": True, "SECOND": True, "ROWWISE": True},
        "AdamW without first moment": {"FIRST": False, "SECOND": True, "ROWWISE": False},
        "AdamW, row-wise without first moment": {"FIRST": False, "SECOND": True, "ROWWISE": True},
        "SGD": {"FIRST": False, "SECOND": False, "ROWWISE": False},
    }
    # dtype, decay, master, stochastic.
    tables = [
        ("fp32", False, False, False),
        ("fp32", True, False, False),
        ("bf16", False, False, False),
        ("bf16", True, False, True),
        ("bf16", True, True, False),
        ("fp16", False, False, False),
    ]
    cases = []
    for width in (*WIDTHS, 2 * rows.MAX_BLOCK_V):
        v = aligned_to_16(width)
        walk = {"READS": 128, "TILE": rows.TILE, "CHUNK": rows.CHUNK}
        for dtype, decay, master, stochastic in tables if width == 1024 else tables[1:4:2]:
            factors = f"*i64 *{dtype} *{dtype} *fp32 i32 {v} {v}"
            if decay and not master:
                cases.append(
                    Case(
                        f"{dtype} V={width}",
                        write.row_squares_kernel,
                        f"{factors} *fp32",
                        **write.norm_blocks(width),
                        **walk,
                    )
                )
            options = {"decay": decay, "master": master, "stochastic": stochastic}
            chosen = "".join(f", {name}" for name, is_on in options.items() if is_on)
            cases += [
                Case(
                    f"{rule}, {dtype} V={width}{chosen}",
                    write.row_step_kernel,
                    f"{factors} *{dtype} *fp32 *fp32 *fp32 *fp64 *i32 *fp32 *fp64 *fp32 i32:16 "
                    "fp32 fp32 fp32 fp32 fp32 fp32 fp32 fp32 fp32 i32 i32",
                    **rows.row_blocks(width),
                    **walk,
                    **constants,
                    DECAY=decay,
                    WIDE=width > rows.MAX_BLOCK_V,
                    MASTER=master,
                    STOCHASTIC=stochastic,
                    AHEAD=rule == "AdamW, ahead",
                )
                for rule, constants in rules.items()
            ]
    return cases


def baseline_cases() -> list[Case]:
    """Table gradients that ours are timed against: J = 128, V = 256 to 4096, bf16 and fp32."""
    from benchmarks import gpu_baselines as baselines

    cases = [
        Case(
            "i64 slots",
            baselines.count_entries_kernel,
            "*i64 *i32 i32:16 i32:16",
            **baselines.ENTRY_BLOCKS,
        ),
        Case(
            "i64 slots",
            baselines.place_entries_kernel,
            "*i64 *i32 *i32 i32:16 i32:16",
            **baselines.ENTRY_BLOCKS,
        ),
    ]
    for width in WIDTHS:
        v = aligned_to_16(width)
        for dtype in ("bf16", "fp32"):
            name = f"{dtype} V={width}"
            cases += [
                Case(
                    name,
                    baselines.atomic_backward_kernel,
                    f"*i64 *fp32 *{dtype} *fp32 i32:16 {v} {v} i32:16",
                    **baselines.column_blocks(width, baselines.ATOMIC_COLUMNS),
                ),
                Case(
                    name,
                    baselines.reduce_rows_kernel,
                    f"*i32 *i32 *i32 *fp32 *{dtype} *fp32 {v} {v}",
                    **baselines.reduce_blocks(128, width),
                ),
            ]
    return cases


def all_cases() -> list[Case]:
    """All kernels of the project."""
    return [*find_cases(), *read_cases(), *write_cases(), *baseline_cases()]


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
        constexprs=case.constants,
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(kernel.arg_names)
            if name in aligned
        },
    )
    log = io.StringIO()
    with redirect_stdout(log):
        compiled = triton.compile(source, target=TARGET, options=case.options)

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


def compile_all(only: str, each: int | None, spill: int) -> tuple[dict[str, Any], list[str]]:
    """Compile kernels and print a table of what they need.

    Args:
        only: Kernels whose name contains this.
        each: First and last cases of each kernel, so many. None: all.
        spill: Bytes that a thread may spill.

    Returns:
        What a result file holds of them, and the cases that spill more or that an H100 has too
        little shared memory for.
    """
    knobs.nvidia.dump_ptxas_log = True  # prints the report of ptxas
    knobs.compilation.always_compile = True  # a cached kernel has no report
    cases = [case for case in all_cases() if only in case.kernel.__name__]
    found = [compile_case(case) for case in some(cases, each)]
    rows = [
        (
            f"{r.kernel}, {r.case}",
            str(r.warps),
            str(r.registers),
            str(r.spill_store_bytes + r.spill_load_bytes),
            f"{r.shared_bytes / 1024:.1f}",
            str(r.programs_per_processor),
        )
        for r in found
    ]
    print(aligned(HEAD, rows))
    kernels = [{**asdict(r), "programs_per_processor": r.programs_per_processor} for r in found]
    bad = [
        f"{r.kernel}, {r.case}"
        for r in found
        if max(r.spill_store_bytes, r.spill_load_bytes) > spill or r.shared_bytes > SHARED_BYTES
    ]
    return {"target": "sm_90", "kernels": kernels}, bad
