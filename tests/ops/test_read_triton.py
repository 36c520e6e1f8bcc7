"""READ in Triton against a dense fp64 product: on a GPU, or under the interpreter without one.

The interpreter is slow: sizes are small, and each is there for one path of a kernel.
"""

import pytest
import torch
from helpers import (
    BF16,
    BF16_TABLE,
    FP32,
    Precision,
    assert_within_budget,
    one_hot_sum,
)
from torch import Tensor

from memory_layers.ops._triton.rows import CHUNK, MAX_BLOCK_V
from memory_layers.ops.read import gather_dot, gather_sum, scatter_sum
from memory_layers.ops.read import triton as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FP16 = Precision("fp16", torch.float16, torch.float16)
ROWS = 9
PRECISIONS = (FP32, BF16, BF16_TABLE, FP16)
SIZES = {
    "no-tokens": (0, 33, 5),
    "one-number": (1, 1, 1),
    "odd": (7, 33, 5),
    "several-tiles-of-rows": (2, 20, 19),
    "power-of-two": (2, 64, 5),
    "several-blocks-of-columns": (1, 1536, 2),
    "several-masked-blocks": (1, 1100, 2),
}
# The odd one in every precision, each other size in two of them, in turn.
CASES = [
    pytest.param(precision, *size, id=f"{precision.name}-{name}")
    for place, (name, size) in enumerate(SIZES.items())
    for n, precision in enumerate(PRECISIONS)
    if name == "odd" or n in (place % 4, (place + 1) % 4)
]
gpu_only = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


def random_slots(tokens: int, reads: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Slots with a duplicate in every token and one hot slot."""
    slots = torch.randint(ROWS, (tokens, reads), dtype=dtype)
    slots[:, -1] = slots[:, 0]
    slots[::3] = 4
    return slots.to(DEVICE)


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    """Random numbers. No product of two is too small for an ordinary fp16 number."""
    numbers = torch.randn(*shape)
    return (numbers if dtype != torch.float16 else (16 * numbers).round() / 16).to(DEVICE, dtype)


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return draw(*shape, dtype=dtype).requires_grad_()


def exact(*tensors: Tensor) -> list[Tensor]:
    return [tensor.detach().cpu().double() for tensor in tensors]


def check(actual: Tensor, product: str, slots: Tensor, left: Tensor, right: Tensor) -> None:
    """Hold a result to the fp64 product of weights and rows, or of rows and vectors."""
    slots, (left, right) = slots.cpu(), exact(left, right)
    answers = []
    for one, other in ((left, right), (left.abs(), right.abs())):
        if product == "sum":
            answers.append(one_hot_sum(slots, one, ROWS) @ other)
        elif product == "scatter":
            answers.append(one_hot_sum(slots, one, ROWS).T @ other)
        else:
            answers.append(torch.einsum("tjv,tv->tj", one[slots.long()], other))
    assert_within_budget(actual.detach().cpu(), *answers)


@pytest.mark.parametrize(("precision", "tokens", "width", "reads"), CASES)
def test_results_and_gradients(precision: Precision, tokens: int, width: int, reads: int) -> None:
    slots = random_slots(tokens, reads)
    table = leaf(ROWS, width, dtype=precision.table)
    weights = leaf(tokens, reads, dtype=precision.token)
    x = leaf(tokens, width, dtype=precision.token)

    out = gather_sum(table, slots, weights, impl="triton")
    assert out.dtype == torch.promote_types(table.dtype, weights.dtype)
    check(out, "sum", slots, weights, table)
    d_out = draw(tokens, width, dtype=out.dtype)
    d_table, d_weights = torch.autograd.grad(out, (table, weights), d_out)
    check(d_table, "scatter", slots, weights, d_out)
    check(d_weights, "dot", slots, table, d_out)

    out = gather_dot(table, slots, x, impl="triton")
    assert out.dtype == torch.float32
    check(out, "dot", slots, table, x)
    d_out = draw(tokens, reads, dtype=out.dtype)
    (d_x,) = torch.autograd.grad(out, x, d_out)
    check(d_x, "sum", slots, d_out, table)


@pytest.mark.parametrize("reads", [1, 3])
def test_a_slot_that_most_tokens_read(reads: int) -> None:
    """Its entries fill chunks of their own: before, within and after the other rows'."""
    tokens = 3 * CHUNK // reads
    slots = torch.full((tokens, reads), 5, device=DEVICE)
    slots[:20, 0] = torch.randint(ROWS, (20,))
    weights, x = leaf(tokens, reads), leaf(tokens, 3)
    check(scatter_sum(slots, weights, x, ROWS, impl="triton"), "scatter", slots, weights, x)


def test_rows_wider_than_a_block() -> None:
    slots, weights, x = random_slots(3, 2), leaf(3, 2), leaf(3, MAX_BLOCK_V + 5)
    check(scatter_sum(slots, weights, x, ROWS, impl="triton"), "scatter", slots, weights, x)


def test_slots_outside_the_table_read_as_zeros_and_are_not_written() -> None:
    """On a GPU nothing checks them: that would make the host wait."""
    slots = torch.tensor([[0, 3, -1], [4, 2**32 + 1, -(2**40)]], device=DEVICE)
    inside = torch.tensor([[1, 1, 0], [0, 0, 0]], device=DEVICE)
    table, x = torch.randn(4, 20, device=DEVICE), torch.randn(2, 20, device=DEVICE)
    weights = torch.rand(2, 3, device=DEVICE) + 1
    safe = torch.where(inside > 0, slots, 0)
    out = kernels.gather_sum(table, slots, weights)
    torch.testing.assert_close(out, gather_sum(table, safe, weights * inside, impl="reference"))
    assert not out[1].any()
    dots = gather_dot(table, safe, x, impl="reference") * inside
    torch.testing.assert_close(kernels.gather_dot(table, slots, x), dots)
    sums = scatter_sum(safe, weights * inside, x, 4, impl="reference")
    torch.testing.assert_close(kernels.scatter_sum(slots, weights, x, 4), sums)


@pytest.mark.parametrize("slots_dtype", [torch.int32, torch.int64])
def test_strided_and_expanded_inputs(slots_dtype: torch.dtype) -> None:
    slots = random_slots(4, 10, slots_dtype)[:, ::2]
    weights = torch.randn(5, 4, device=DEVICE).T
    x = torch.randn(4, 40, device=DEVICE)[:, ::2]
    wide = torch.randn(ROWS, 48, device=DEVICE)
    for table in (wide[:, 16:36], wide[:, ::2][:, :20], wide.T[:20, :ROWS].T):
        check(gather_sum(table, slots, weights, impl="triton"), "sum", slots, weights, table)
        check(gather_dot(table, slots, x, impl="triton"), "dot", slots, table, x)
    check(scatter_sum(slots, weights, x, ROWS, impl="triton"), "scatter", slots, weights, x)
    one = torch.ones(1, 1, device=DEVICE).expand(4, 20)
    check(gather_dot(table, slots, one, impl="triton"), "dot", slots, table, one)


def test_no_reads_and_no_rows_give_zeros() -> None:
    none = torch.zeros(3, 0, dtype=torch.int64, device=DEVICE)
    table, x = torch.randn(ROWS, 4, device=DEVICE), torch.randn(3, 4, device=DEVICE)
    assert torch.equal(kernels.gather_sum(table, none, x[:, :0]), torch.zeros_like(x))
    assert torch.equal(kernels.scatter_sum(none, x[:, :0], x, ROWS), torch.zeros_like(table))
    assert kernels.gather_dot(table, none, x).shape == (3, 0)
    assert not kernels.gather_sum(table[:0], random_slots(3, 2), x[:, :2]).any()


def test_a_token_does_not_depend_on_its_neighbours() -> None:
    table, slots = torch.randn(ROWS, 33, device=DEVICE), random_slots(5, 5)
    weights, x = torch.randn(5, 5, device=DEVICE), torch.randn(5, 33, device=DEVICE)
    for op, side in ((kernels.gather_sum, weights), (kernels.gather_dot, x)):
        assert torch.equal(op(table, slots, side)[2:3], op(table, slots[2:3], side[2:3]))


def test_nan_and_infinity_are_read() -> None:
    table = torch.tensor([[float("nan"), float("inf"), -float("inf"), 3e38]], device=DEVICE)
    for dtype in (torch.float32, torch.bfloat16):
        rows = table.to(dtype)
        slots = torch.zeros(1, 1, dtype=torch.int64, device=DEVICE)
        out = kernels.gather_sum(rows, slots, torch.ones(1, 1, dtype=dtype, device=DEVICE))
        torch.testing.assert_close(out, rows, rtol=0, atol=0, equal_nan=True)


@gpu_only
def test_reads_are_captured_in_a_graph_and_do_not_wait() -> None:
    table, slots = torch.randn(ROWS, 33, device=DEVICE), random_slots(5, 5)
    weights = torch.randn(5, 5, device=DEVICE)
    expected = gather_sum(table, slots, weights)
    torch.cuda.set_sync_debug_mode("error")
    try:
        gather_dot(table, slots, expected)
        scatter_sum(slots, weights, expected, ROWS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = gather_sum(table, slots, weights)
    out.zero_()
    graph.replay()
    assert torch.equal(out, expected)


@gpu_only
def test_sums_of_rows_are_the_same_every_time() -> None:
    slots = torch.randint(50, (5000, 16), device=DEVICE)
    weights, x = torch.randn(5000, 16, device=DEVICE), torch.randn(5000, 64, device=DEVICE)
    first = scatter_sum(slots, weights, x, 50)
    assert all(torch.equal(first, scatter_sum(slots, weights, x, 50)) for _ in range(5))
