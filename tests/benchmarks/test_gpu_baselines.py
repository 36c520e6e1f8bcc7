"""The backward passes that ours is timed against: on a GPU, or under Triton's interpreter."""

from collections.abc import Callable

import pytest
import torch
from helpers import assert_within_budget
from torch import Tensor

from memory_layers.ops.read.reference import scatter_sum

pytest.importorskip("triton")
from benchmarks import gpu_baselines

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROWS = 9
HOT = 4
every_backward = pytest.mark.parametrize(
    "backward",
    [gpu_baselines.atomic_backward, gpu_baselines.count_sort_reduce_backward],
    ids=lambda backward: backward.__name__,
)


def random_slots(tokens: int, reads: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Slots with a duplicate in every token that has two, a hot row, and rows never read."""
    slots = torch.randint(ROWS - 2, (tokens, reads), dtype=dtype)
    slots[:, -1] = slots[:, 0]
    slots[::3] = HOT
    return slots.to(DEVICE)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape).to(DEVICE)


def check(backward: Callable, slots: Tensor, weights: Tensor, d_out: Tensor) -> None:
    """Hold a gradient to the reference in fp64."""
    actual = backward(slots, weights, d_out, ROWS)
    assert actual.dtype == torch.float32
    slots, weights, d_out = slots.cpu(), weights.cpu().double(), d_out.cpu().double()
    exact = scatter_sum(slots, weights, d_out, ROWS)
    magnitude = scatter_sum(slots, weights.abs(), d_out.abs(), ROWS)
    assert_within_budget(actual.cpu(), exact, magnitude)


@every_backward
@pytest.mark.parametrize(
    ("tokens", "width", "reads"), [(1, 1, 1), (1, 33, 5), (7, 1, 5), (7, 20, 5), (7, 33, 1)]
)
def test_gradient(backward: Callable, tokens: int, width: int, reads: int) -> None:
    check(backward, random_slots(tokens, reads), draw(tokens, reads), draw(tokens, width))


@every_backward
def test_several_blocks(backward: Callable) -> None:
    """More columns than a program has at a time, and more entries, many of one row."""
    width = gpu_baselines.SUM_COLUMNS + 3
    check(backward, random_slots(3, 2), draw(3, 2), draw(3, width))
    tokens = gpu_baselines.ENTRY_BLOCKS["BLOCK_E"] // 5 + 1
    check(backward, random_slots(tokens, 5), draw(tokens, 5), draw(tokens, 3))


@every_backward
def test_types_and_strides(backward: Callable) -> None:
    slots = random_slots(5, 7, torch.int32).T
    check(backward, slots, draw(5, 7).bfloat16().T, draw(20, 7).bfloat16().T)
    check(backward, slots, draw(5, 7).T, draw(7, 40)[:, :20])


@every_backward
def test_slots_outside_the_table_are_left_out(backward: Callable) -> None:
    slots, weights, d_out = random_slots(7, 5), draw(7, 5), draw(7, 20)
    inside = backward(slots, weights.index_fill(1, torch.tensor(2, device=DEVICE), 0), d_out, ROWS)
    slots[:, 2] = torch.tensor([-1, ROWS, 2**40, -(2**40), ROWS, -1, ROWS])
    torch.testing.assert_close(backward(slots, weights, d_out, ROWS), inside)


@every_backward
@pytest.mark.parametrize(
    ("tokens", "reads", "width", "rows"), [(0, 5, 3, 2), (2, 0, 3, 2), (2, 5, 0, 2), (2, 5, 3, 0)]
)
def test_nothing_to_add(backward: Callable, tokens: int, reads: int, width: int, rows: int) -> None:
    slots = torch.zeros(tokens, reads, dtype=torch.int64, device=DEVICE)
    gradient = backward(slots, draw(tokens, reads), draw(tokens, width), rows)
    assert torch.equal(gradient.cpu(), torch.zeros(rows, width))
