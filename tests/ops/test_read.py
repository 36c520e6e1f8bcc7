"""READ against a dense fp64 product, for every implementation, type and odd size."""

import pytest
import torch
from helpers import (
    BF16,
    FP32,
    IMPL_PRECISIONS,
    IMPLS,
    Precision,
    assert_within_budget,
    one_hot_sum,
    precision_id,
)
from torch import Tensor

from memory_layers.ops.read import gather_dot, gather_sum
from memory_layers.ops.read.api import scatter_sum

ROWS = 17
every_kernel = pytest.mark.parametrize(("impl", "precision"), IMPL_PRECISIONS, ids=precision_id)
every_size = pytest.mark.parametrize(
    ("tokens", "width", "reads"),
    [
        *((t, 33, 5) for t in (0, 1, 7, 63)),
        *((7, v, 5) for v in (1, 20, 64)),
        *((t, v, 1) for t, v in ((1, 1), (7, 33), (63, 20), (63, 64))),
        # Few tokens are read in parts, with whole groups of rows in each.
        *((t, 33, j) for t, j in ((1, 37), (3, 128), (2, 33))),
    ],
)


def random_slots(tokens: int, reads: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Slots with a duplicate in every token and one hot slot."""
    slots = torch.randint(ROWS, (tokens, reads), dtype=dtype)
    slots[:, -1] = slots[:, 0]
    slots[::3] = 4
    return slots


def leaf(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_()


def check_gather_sum(
    table: Tensor, slots: Tensor, weights: Tensor, d_out: Tensor, impl: str
) -> None:
    out = gather_sum(table, slots, weights, impl=impl)
    assert out.dtype == torch.promote_types(table.dtype, weights.dtype)
    d_table, d_weights = torch.autograd.grad(out, (table, weights), d_out)
    assert (d_table.dtype, d_weights.dtype) == (table.dtype, weights.dtype)
    rows, grad = table.detach().double(), d_out.double()
    chosen = one_hot_sum(slots, weights.detach(), ROWS)
    reads = rows[slots.long()]
    assert_within_budget(out.detach(), chosen @ rows, _one_hot_abs(slots, weights) @ rows.abs())
    assert_within_budget(d_table, chosen.T @ grad, _one_hot_abs(slots, weights).T @ grad.abs())
    assert_within_budget(
        d_weights,
        torch.einsum("tjv,tv->tj", reads, grad),
        torch.einsum("tjv,tv->tj", reads.abs(), grad.abs()),
    )


def check_gather_dot(table: Tensor, slots: Tensor, x: Tensor, d_out: Tensor, impl: str) -> None:
    out = gather_dot(table, slots, x, impl=impl)
    assert out.dtype == d_out.dtype
    d_table, d_x = torch.autograd.grad(out, (table, x), d_out)
    assert (d_table.dtype, d_x.dtype) == (table.dtype, x.dtype)
    rows, vectors = table.detach().double(), x.detach().double()
    reads = rows[slots.long()]
    assert_within_budget(
        out.detach(),
        torch.einsum("tjv,tv->tj", reads, vectors),
        torch.einsum("tjv,tv->tj", reads.abs(), vectors.abs()),
    )
    scatter, scatter_abs = one_hot_sum(slots, d_out, ROWS), _one_hot_abs(slots, d_out)
    assert_within_budget(d_table, scatter.T @ vectors, scatter_abs.T @ vectors.abs())
    assert_within_budget(d_x, scatter @ rows, scatter_abs @ rows.abs())


def check_scatter_sum(slots: Tensor, weights: Tensor, x: Tensor, d_out: Tensor, impl: str) -> None:
    out = scatter_sum(slots, weights, x, ROWS, impl=impl)
    assert out.dtype == d_out.dtype
    d_weights, d_x = torch.autograd.grad(out, (weights, x), d_out)
    vectors, grad = x.detach().double(), d_out.double()
    chosen, chosen_abs = one_hot_sum(slots, weights.detach(), ROWS), _one_hot_abs(slots, weights)
    assert_within_budget(out.detach(), chosen.T @ vectors, chosen_abs.T @ vectors.abs())
    assert_within_budget(d_x, chosen @ grad, chosen_abs @ grad.abs())
    reads = grad[slots.long()]
    assert_within_budget(
        d_weights,
        torch.einsum("tjv,tv->tj", reads, vectors),
        torch.einsum("tjv,tv->tj", reads.abs(), vectors.abs()),
    )


def _one_hot_abs(slots: Tensor, weights: Tensor) -> Tensor:
    return one_hot_sum(slots, weights.detach().abs(), ROWS)


@every_kernel
@every_size
def test_gather_sum(impl: str, precision: Precision, tokens: int, width: int, reads: int) -> None:
    table = leaf(ROWS, width, dtype=precision.table)
    weights = leaf(tokens, reads, dtype=precision.token)
    d_out = torch.randn(tokens, width).to(torch.promote_types(precision.table, precision.token))
    check_gather_sum(table, random_slots(tokens, reads), weights, d_out, impl)


@every_kernel
@every_size
def test_gather_dot(impl: str, precision: Precision, tokens: int, width: int, reads: int) -> None:
    table = leaf(ROWS, width, dtype=precision.table)
    x = leaf(tokens, width, dtype=precision.token)
    d_out = torch.randn(tokens, reads).to(precision.sums)
    check_gather_dot(table, random_slots(tokens, reads), x, d_out, impl)


@every_kernel
@every_size
def test_scatter_sum(impl: str, precision: Precision, tokens: int, width: int, reads: int) -> None:
    weights = leaf(tokens, reads, dtype=precision.token)
    x = leaf(tokens, width, dtype=precision.token)
    d_out = torch.randn(ROWS, width).to(torch.promote_types(precision.token, torch.float32))
    check_scatter_sum(random_slots(tokens, reads), weights, x, d_out, impl)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("slots_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("hot", [False, True])
def test_slot_types_and_all_reads_on_one_slot(
    impl: str, slots_dtype: torch.dtype, hot: bool
) -> None:
    slots = random_slots(63, 5, slots_dtype)
    if hot:
        slots.fill_(ROWS - 1)
    table, weights, x = (leaf(*s, dtype=torch.float32) for s in ((ROWS, 33), (63, 5), (63, 33)))
    check_gather_sum(table, slots, weights, torch.randn(63, 33), impl)
    check_gather_dot(table, slots, x, torch.randn(63, 5), impl)
    check_scatter_sum(slots, weights, x, torch.randn(ROWS, 33), impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_strided_and_expanded_inputs(impl: str) -> None:
    table = torch.randn(20, ROWS).T.requires_grad_()
    slots = random_slots(7, 10)[:, ::2]
    weights = torch.randn(5, 7).T.requires_grad_()
    x = torch.randn(7, 40)[:, ::2].requires_grad_()
    check_gather_sum(table, slots, weights, torch.ones(1, 1).expand(7, 20), impl)
    check_gather_dot(table, slots, x, torch.ones(1, 1).expand(7, 5), impl)
    check_scatter_sum(slots, weights, x, torch.ones(1, 1).expand(ROWS, 20), impl)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("tokens", "reads"), [(200, 5), (2, 40)])
@pytest.mark.parametrize("precision", [FP32, BF16], ids=precision_id)
def test_result_does_not_depend_on_threads(precision: Precision, tokens: int, reads: int) -> None:
    table = torch.randn(ROWS, 40).to(precision.table)
    slots, weights = random_slots(tokens, reads), torch.randn(tokens, reads)
    x = torch.randn(tokens, 40)
    results = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        results.append(
            (
                gather_sum(table, slots, weights, impl="cpu"),
                gather_dot(table, slots, x, impl="cpu"),
                scatter_sum(slots, weights, x, ROWS, impl="cpu"),
            )
        )
    for many, one in zip(*results, strict=True):
        assert torch.equal(many, one)


def fp64_inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    slots = torch.tensor([[0, 3, 3], [1, 1, 1], [2, 0, 3]])
    table, weights, x = (leaf(*s, dtype=torch.float64) for s in ((4, 3), (3, 3), (3, 3)))
    return table, slots, weights, x


def test_gradients_and_second_gradients_of_all_three() -> None:
    table, slots, weights, x = fp64_inputs()
    for function, inputs in (
        (lambda t, w: gather_sum(t, slots, w), (table, weights)),
        (lambda t, x: gather_dot(t, slots, x), (table, x)),
        (lambda w, x: scatter_sum(slots, w, x, 4), (weights, x)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("op", [gather_sum, gather_dot])
def test_second_gradient_of_the_kernel(op: object) -> None:
    """The kernel's gradient of a gradient, in fp32, against the reference's in fp64."""
    table, slots, weights, x = fp64_inputs()
    answers = []
    for impl, dtype in (("reference", torch.float64), ("cpu", torch.float32)):
        sides = weights if op is gather_sum else x
        t, side = (s.detach().to(dtype).requires_grad_() for s in (table, sides))
        out = op(t, slots, side, impl=impl)
        first = torch.autograd.grad(out.pow(3).sum(), (t, side), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (t, side))
        answers.append([g.double() for g in second])
    for exact, actual in zip(*answers, strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("impl", IMPLS)
def test_no_gradient_where_none_is_asked_for(impl: str) -> None:
    table = torch.randn(ROWS, 4)
    weights = torch.randn(3, 2, requires_grad=True)
    gather_sum(table, random_slots(3, 2), weights, impl=impl).sum().backward()
    assert table.grad is None
    assert weights.grad is not None


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("slots_dtype", [torch.int32, torch.int64])
def test_addresses_beyond_31_bits(impl: str, slots_dtype: torch.dtype) -> None:
    rows, width = 2**25, 65
    table = torch.empty(rows, width, dtype=torch.bfloat16)  # 4.4 GiB, but only 3 rows are touched
    assert table.numel() > 2**31
    few = torch.randn(3, width).bfloat16()
    where = torch.tensor([0, rows - 2, rows - 1])
    table[where] = few
    small = torch.tensor([[0, 1, 2, 2], [2, 1, 1, 0]])
    large = where[small].to(slots_dtype)
    weights, x = torch.randn(2, 4), torch.randn(2, width)
    for op, side in ((gather_sum, weights), (gather_dot, x)):
        assert torch.equal(op(table, large, side, impl=impl), op(few, small, side, impl=impl))


@pytest.mark.parametrize("op", [gather_sum, gather_dot])
@pytest.mark.parametrize("impl", IMPLS)
def test_autocast_does_not_round(impl: str, op: object) -> None:
    table, slots = torch.randn(ROWS, 20), random_slots(7, 5)
    side = torch.randn(7, 5) if op is gather_sum else torch.randn(7, 20)
    plain = op(table, slots, side, impl=impl)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(op(table, slots, side, impl=impl), plain)


def good_arguments() -> dict[str, Tensor]:
    return {"table": torch.randn(5, 4), "slots": torch.zeros(3, 2, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slots": torch.tensor([[0, 5]] * 3)}, r"slots must lie in \[0, 5\), got 0 to 5"),
        ({"slots": torch.tensor([[0, -1]] * 3)}, r"slots must lie in \[0, 5\), got -1 to 0"),
        ({"slots": torch.zeros(3, 2)}, "slots must be int32 or int64, got torch.float32"),
        ({"slots": torch.zeros(3, 2, dtype=torch.bool)}, "slots must be int32 or int64"),
        ({"slots": torch.zeros(6, dtype=torch.int64)}, r"slots must have shape \[T, J\]"),
        ({"table": torch.randn(20)}, r"table must have shape \[N, V\], got \[20\]"),
        ({"table": torch.ones(5, 4, dtype=torch.int64)}, "table must be floating point"),
        ({"impl": "gpu"}, 'impl must be "auto", "reference", "cpu" or "triton", got'),
        ({"table": torch.randn(5, 4).double(), "impl": "cpu"}, "supports float32, bfloat16"),
        ({"table": torch.randn(5, 4).half(), "impl": "cpu"}, "supports float32, bfloat16"),
        ({"table": torch.randn(5, 4, device="meta")}, "one device, got table on meta"),
        ({"slots": torch.zeros(3, 2, dtype=torch.int64, device="meta")}, "slots on meta"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, object], message: str) -> None:
    arguments = {**good_arguments(), **changes}
    with pytest.raises(ValueError, match=message):
        gather_sum(weights=torch.randn(3, 2), **arguments)
    with pytest.raises(ValueError, match=message):
        gather_dot(x=torch.randn(3, 4), **arguments)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, s: gather_sum(t, s, torch.randn(3, 1)), r"weights must have shape \[T=3, J=2\]"),
        (lambda t, s: gather_sum(t, s, torch.ones(3, 2).long()), "weights must be floating point"),
        (lambda t, s: gather_dot(t, s, torch.randn(3, 5)), r"x must have shape \[T=3, V=4\]"),
        (lambda t, s: gather_dot(t, s, torch.randn(2, 4)), r"x must have shape \[T=3, V=4\]"),
        (
            lambda t, s: gather_sum(t, s, torch.randn(3, 2, device="meta")),
            "weights on meta",
        ),
        (lambda t, s: gather_sum(t, s, torch.randn(3, 2).double(), impl="cpu"), "torch.float64"),
        (
            lambda t, s: scatter_sum(s + 5, torch.randn(3, 2), torch.randn(3, 4), 5),
            r"slots must lie in \[0, 5\)",
        ),
        (
            lambda t, s: scatter_sum(s, torch.randn(3, 2), torch.randn(2, 4), 5),
            r"x must have shape \[T=3, V\]",
        ),
    ],
)
def test_bad_token_side_is_named(call: object, message: str) -> None:
    arguments = good_arguments()
    with pytest.raises(ValueError, match=message):
        call(arguments["table"], arguments["slots"])
