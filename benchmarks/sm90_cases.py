"""Which Triton kernels are compiled for sm_90, with which arguments: one function an operation.

Arguments are named as Triton names their types: "*bf16", "*fp32", "i32", or "i32:16" for a number
that is a multiple of 16.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg")


@dataclass(frozen=True)
class Case:
    """One kernel with the types of its arguments and its constants."""

    name: str
    kernel: Any  # a function under triton.jit
    arguments: Sequence[str]
    constants: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, kernel: Any, arguments: str, **constants: Any) -> "Case":  # noqa: ANN401
        """Make a case from the keyword arguments of a launch, constants and options mixed."""
        return cls(
            name,
            kernel,
            arguments.split(),
            {n: v for n, v in constants.items() if n not in OPTIONS},
            {n: v for n, v in constants.items() if n in OPTIONS},
        )


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
            Case.of(
                name,
                lower_bounds_kernel,
                f"{inputs} *fp32 i32:16 i32:16 fp32",
                **find.lower_bounds_constants(*shape),
            ),
            Case.of(
                name,
                best_sub_keys_kernel,
                f"{inputs} *fp32 *i64 *i32 *i64 *i8 {numbers}",
                HAS_BOUNDS=True,
                **find.best_sub_keys_constants(*shape),
            ),
            Case.of(
                name,
                redo_sub_keys_kernel,
                f"{inputs} *i64 *i32 *fp32 *i64 *i8 {numbers}",
                **find.redo_sub_keys_constants(*shape),
            ),
        ]
    cases += [
        Case.of(
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
                Case.of(
                    f"{dtype} C={width}",
                    find.query_gradient_kernel,
                    f"*fp32 *i64 *{dtype} *{dtype} *i32 i32:16 i32:16",
                    HEADS=4, BLOCK_K=find.VECTORS, **blocks,
                ),
                Case.of(
                    f"{dtype} C={width}",
                    find.sub_key_gradient_kernel,
                    f"*i64 *i64 *fp32 *{dtype} *fp32 i32:16 i32",
                    K=32, BLOCK_E=find.VECTORS, **blocks,
                ),
            ]  # fmt: skip
    return cases


# Widths of the paper, the widest that a program owns whole, and two that must be masked.
WIDTHS = (256, 768, 1024, 2048, 4096, 20, 1000)


def aligned(width: int) -> str:
    """Name the type of a width or a stride."""
    return "i32:16" if width % 16 == 0 else "i32"


def read_cases() -> list[Case]:
    """READ at the paper's sizes: J = 128, V = 256 to 4096, all types."""
    from memory_layers.ops._triton import rows
    from memory_layers.ops.read import triton as read

    cases = []
    for width in WIDTHS:
        v = aligned(width)
        types = {"bf16": 2, "fp32": 4, **({"fp16": 2} if width == 1024 else {})}
        for dtype, item_bytes in types.items():
            name = f"{dtype} V={width}"
            sums = {**rows.row_blocks(width), "READS": 128, "CHUNK": rows.CHUNK}
            factors = f"*i64 *{dtype} *{dtype} *fp32"
            cases += [
                Case.of(
                    name,
                    read.gather_sum_kernel,
                    f"*{dtype} *i64 *{dtype} *{dtype} i32:16 {v} {v} i32:16",
                    **read.sum_blocks(128, width, item_bytes),
                ),
                Case.of(
                    name,
                    read.gather_dot_kernel,
                    f"*{dtype} *i64 *{dtype} *fp32 i32:16 {v} {v} {v} i32:16",
                    **read.dot_blocks(128, width, item_bytes),
                ),
                Case.of(name, rows.partial_sums_kernel, f"{factors} {v} {v}", **sums),
                Case.of(
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
        v = aligned(width)
        walk = {"READS": 128, "TILE": rows.TILE, "CHUNK": rows.CHUNK}
        for dtype, decay, master, stochastic in tables if width == 1024 else tables[1:4:2]:
            factors = f"*i64 *{dtype} *{dtype} *fp32 i32 {v} {v}"
            if decay and not master:
                cases.append(
                    Case.of(
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
                Case.of(
                    f"{rule}, {dtype} V={width}{chosen}",
                    write.row_step_kernel,
                    f"{factors} *{dtype} *fp32 *fp32 *fp32 *fp64 *fp64 *fp32 i32:16 "
                    "fp32 fp32 fp32 fp32 fp32 fp32 fp32 i32",
                    **rows.row_blocks(width),
                    **walk,
                    **constants,
                    DECAY=decay,
                    WIDE=width > rows.MAX_BLOCK_V,
                    MASTER=master,
                    STOCHASTIC=stochastic,
                )
                for rule, constants in rules.items()
            ]
    return cases


def baseline_cases() -> list[Case]:
    """Table gradients that ours are timed against: J = 128, V = 256 to 4096, bf16 and fp32."""
    from benchmarks import gpu_baselines as baselines

    cases = [
        Case.of(
            "i64 slots",
            baselines.count_entries_kernel,
            "*i64 *i32 i32:16 i32:16",
            **baselines.ENTRY_BLOCKS,
        ),
        Case.of(
            "i64 slots",
            baselines.place_entries_kernel,
            "*i64 *i32 *i32 i32:16 i32:16",
            **baselines.ENTRY_BLOCKS,
        ),
    ]
    for width in WIDTHS:
        v = aligned(width)
        for dtype in ("bf16", "fp32"):
            name = f"{dtype} V={width}"
            cases += [
                Case.of(
                    name,
                    baselines.atomic_backward_kernel,
                    f"*i64 *fp32 *{dtype} *fp32 i32:16 {v} {v} i32:16",
                    **baselines.column_blocks(width, baselines.ATOMIC_COLUMNS),
                ),
                Case.of(
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
