"""Inputs, exact answers and numerical budgets that the tests of several folders share."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import memory_layers

PACKAGE = Path(memory_layers.__file__).parent
IMPLS = ("reference", "cpu")
FP32_EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Precision:
    """Types of a table and of what a token brings: weights, x and gradients."""

    name: str
    table: torch.dtype
    token: torch.dtype

    @property
    def sums(self) -> torch.dtype:
        return torch.promote_types(torch.promote_types(self.table, self.token), torch.float32)


FP32 = Precision("fp32", torch.float32, torch.float32)
BF16 = Precision("bf16", torch.bfloat16, torch.bfloat16)
BF16_TABLE = Precision("bf16-table", torch.bfloat16, torch.float32)
FP64 = Precision("fp64", torch.float64, torch.float64)

# Every implementation with every precision that it supports.
IMPL_PRECISIONS = [
    (impl, precision)
    for impl in IMPLS
    for precision in (FP32, BF16, BF16_TABLE, FP64)
    if impl != "cpu" or precision is not FP64
]


def precision_id(value: object) -> str:
    """Name a parameter of IMPL_PRECISIONS in a test's id."""
    return value.name if isinstance(value, Precision) else str(value)


def one_hot_sum(slots: Tensor, weights: Tensor, num_rows: int) -> Tensor:
    """Weights of the slots as a dense fp64 matrix [T, N]: slots named twice count twice."""
    matrix = torch.zeros(slots.shape[0], num_rows, dtype=torch.float64)
    for j in range(slots.shape[1]):
        matrix[torch.arange(slots.shape[0]), slots[:, j].long()] += weights[:, j].double()
    return matrix


def assert_within_budget(actual: Tensor, exact: Tensor, magnitude: Tensor) -> None:
    """Hold a sum of products to fp32 accumulation and one rounding to the output's type.

    Args:
        actual: The result under test.
        exact: The fp64 answer for the same inputs.
        magnitude: The fp64 answer for the absolute values of the inputs: what rounding errors
            of the sum are relative to.
    """
    assert actual.shape == exact.shape
    eps = torch.finfo(actual.dtype).eps
    sum_eps = min(eps, FP32_EPS)
    # Half an eps is one rounding to the nearest. Two more of the sum's own for its additions.
    limit = eps / 2 * exact.abs() + 2 * sum_eps * magnitude
    error = (actual.double() - exact).abs()
    worst = (error - limit).max() if error.numel() else torch.tensor(-1.0)
    assert worst <= 0, f"error exceeds the budget by {worst}: {error.max()} of {limit.max()}"


def exact_pair_scores(query: Tensor, sub_keys: Tensor) -> Tensor:
    """Score every one of the M * M slots in fp64: [T, H, M * M]."""
    halves = torch.einsum("thpc,hpmc->thpm", query.double(), sub_keys.double())
    return (halves[:, :, 0, :, None] + halves[:, :, 1, None, :]).flatten(2)


def assert_same_selection(
    scores: Tensor, slots: Tensor, exact: Tensor, magnitude: Tensor | float
) -> None:
    """Check a selection by what it is worth, never by its indices: ties may fall either way.

    Args:
        scores: [T, H, K] under test.
        slots: [T, H, K] under test.
        exact: [T, H, M * M] fp64 scores of every slot.
        magnitude: What rounding errors of a score are relative to. 0: the arithmetic is exact.
    """
    k = slots.shape[2]
    assert scores.shape == slots.shape
    assert slots.dtype == torch.int64
    assert ((slots >= 0) & (slots < exact.shape[2])).all()
    ordered = slots.sort(dim=-1).values
    assert (ordered.diff(dim=-1) > 0).all(), "a slot was selected twice"
    assert (scores.diff(dim=-1) <= 0).all(), "scores must fall"
    limit = 4 * min(FP32_EPS, torch.finfo(scores.dtype).eps) * magnitude
    chosen = exact.gather(-1, slots)
    assert ((scores.double() - chosen).abs() <= limit).all(), "a score is not that of its slot"
    best = exact.topk(k, dim=-1).values
    regret = best - chosen.sort(dim=-1, descending=True).values
    assert (regret <= 2 * limit).all(), f"regret {regret.max()}: a better slot was left out"


def fresh_interpreter(program: str, *arguments: str, **environment: str) -> str:
    """Run a program in a new process that can import the package and has imported nothing.

    Args:
        program: Python source.
        *arguments: Its sys.argv[1:].
        **environment: Environment variables to set.

    Returns:
        What it printed. An exit status that is not 0 raises, with what it wrote to stderr.
    """
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent), **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
