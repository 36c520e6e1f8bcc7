"""FIND against exhaustive search over all M * M slots. Slots are judged by their score."""

import pytest
import torch
from helpers import (
    FP32_EPS,
    IMPLS,
    assert_same_selection,
    exact_pair_scores,
    fresh_interpreter,
)
from torch import Tensor

from memory_layers.ops.dispatch import choose
from memory_layers.ops.find import cpu, product_key_topk

# T, H, M, C, k. k = 1, k = M, T = 0, T past a block of 16, and M on both sides of 4 k, where the
# CPU version begins to skip scores below a bound.
SIZES = [
    (0, 2, 5, 4, 3),
    (1, 1, 1, 3, 1),
    (7, 2, 7, 5, 1),
    (5, 3, 13, 4, 13),
    (33, 1, 11, 8, 3),
    (33, 1, 12, 8, 3),
    (17, 2, 101, 4, 8),
    (63, 1, 33, 7, 5),
    (5, 2, 37, 6, 32),
    (5, 1, 131, 6, 32),
]
every_impl = pytest.mark.parametrize("impl", IMPLS)


def magnitude(query: Tensor, sub_keys: Tensor) -> Tensor:
    """What rounding errors of a pair's score are relative to: [T, H, 1]."""
    return exact_pair_scores(query.abs(), sub_keys.abs()).amax(-1, keepdim=True)


def half_scores_as_inputs(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """A query and sub-keys [1, 2, M, 1] whose half scores are the given numbers, exactly."""
    return torch.ones(1, 1, 2, 1), torch.stack((first, second))[None, :, :, None]


@every_impl
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_selects_the_best_slots(impl: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    if impl == "cpu" and dtype == torch.float64:
        impl = "auto"  # fp64 has no kernel: the reference takes it
    tokens, heads, num_keys, width, k = size
    query = torch.randn(tokens, heads, 2, width).to(dtype)
    sub_keys = torch.randn(heads, 2, num_keys, width).to(dtype)
    scores, slots = product_key_topk(query, sub_keys, k, impl=impl)
    assert scores.dtype == torch.promote_types(dtype, torch.float32)
    assert scores.shape == (tokens, heads, k)
    if tokens:
        exact = exact_pair_scores(query, sub_keys)
        assert_same_selection(scores, slots, exact, magnitude(query, sub_keys))


@every_impl
@pytest.mark.parametrize("size", SIZES[1:])
def test_ties_lose_nothing(impl: str, size: tuple[int, ...]) -> None:
    tokens, heads, num_keys, width, k = size
    query = torch.randint(-2, 3, (tokens, heads, 2, width)).float()
    sub_keys = torch.randint(-2, 3, (heads, 2, num_keys, width)).float()
    scores, slots = product_key_topk(query, sub_keys, k, impl=impl)
    assert_same_selection(scores, slots, exact_pair_scores(query, sub_keys), 0.0)


@every_impl
@pytest.mark.parametrize("num_keys", [5, 131])
@pytest.mark.parametrize("zero", ["query", "keys", "equal keys"])
def test_all_scores_equal(impl: str, num_keys: int, zero: str) -> None:
    query = torch.randint(1, 4, (17, 1, 2, 3)).float() * (zero != "query")
    sub_keys = torch.ones(1, 2, num_keys, 3) * (zero != "keys")
    scores, slots = product_key_topk(query, sub_keys, 5, impl=impl)
    assert_same_selection(scores, slots, exact_pair_scores(query, sub_keys), 0.0)


@every_impl
@pytest.mark.parametrize("k", [1, 4, 32])
@pytest.mark.parametrize(
    "arrange",
    [
        pytest.param(lambda s, k: s, id="rising"),
        pytest.param(lambda s, k: s.flip(0), id="falling"),
        # The CPU version bounds the k-th score by the maxima of 2 k groups, m modulo 2 k. Here
        # the best are in one group, so the bound is as bad as it can be.
        pytest.param(
            lambda s, k: s.flip(0)[
                (torch.arange(len(s)) % (2 * k)).sort(stable=True).indices.argsort()
            ],
            id="one-group",
        ),
        pytest.param(lambda s, k: torch.where(s > len(s) - k, s, -torch.inf), id="minus-infinity"),
    ],
)
def test_order_of_the_scores_does_not_matter(impl: str, k: int, arrange: object) -> None:
    num_keys = 20 * k + 3
    first = arrange(torch.arange(num_keys).float(), k)
    query, sub_keys = half_scores_as_inputs(first, first.roll(1) / 1024)
    scores, slots = product_key_topk(query, sub_keys, k, impl=impl)
    exact = exact_pair_scores(query, sub_keys)
    assert torch.equal(scores.double(), exact.topk(k, dim=-1).values)
    assert torch.equal(exact.gather(-1, slots), scores.double())


def test_merge_keeps_all_pairs_that_can_be_best() -> None:
    """Half scores that fall evenly need every pair of ranks with (i + 1)(j + 1) <= k: 119 of 32."""
    k = 32
    assert sum(k // (i + 1) for i in range(k)) == 119
    falling = torch.arange(40, 0, -1).float()
    for ratio in (2**-8, 1 / 4, 1 / 2, 1, 3, 2**8):
        query, sub_keys = half_scores_as_inputs(falling, falling * ratio)
        scores, slots = product_key_topk(query, sub_keys, k, impl="cpu")
        assert_same_selection(scores, slots, exact_pair_scores(query, sub_keys), 0.0)
    # The slowest-falling products: rank i of one half, rank j of the other, at the hyperbola.
    logs = -torch.log(torch.arange(1, 41).double()).float()
    query, sub_keys = half_scores_as_inputs(logs, logs)
    scores, slots = product_key_topk(query, sub_keys, k, impl="cpu")
    exact = exact_pair_scores(query, sub_keys)
    assert_same_selection(scores, slots, exact, magnitude(query, sub_keys))


def test_tokens_do_not_meet() -> None:
    """Many tokens in one call, with scratch space used again, equal each token alone."""
    query, sub_keys = torch.randn(40, 2, 2, 4), torch.randn(2, 2, 50, 4)
    query[::3] = query[::3].round()  # tokens with many candidates between those with few
    sub_keys[:, :, ::2] = sub_keys[:, :, ::2].round()
    scores, slots = product_key_topk(query, sub_keys, 7, impl="cpu")
    for t in range(40):
        alone = product_key_topk(query[t : t + 1], sub_keys, 7, impl="cpu")
        torch.testing.assert_close(scores[t], alone[0][0], rtol=0, atol=1e-5)
    assert_same_selection(
        scores, slots, exact_pair_scores(query, sub_keys), magnitude(query, sub_keys)
    )


def test_scores_in_several_parts_equal_one(monkeypatch: pytest.MonkeyPatch) -> None:
    query, sub_keys = torch.randn(20, 2, 2, 4), torch.randn(2, 2, 9, 4)
    whole = product_key_topk(query, sub_keys, 4, impl="cpu")
    monkeypatch.setattr(cpu, "SCORE_NUMBERS", 3 * 2 * 2 * 9)  # 3 tokens at a time: 20 = 6 * 3 + 2
    parts = product_key_topk(query, sub_keys, 4, impl="cpu")
    torch.testing.assert_close(parts[0], whole[0], rtol=0, atol=1e-5)
    exact = exact_pair_scores(query, sub_keys)
    assert_same_selection(*parts, exact, magnitude(query, sub_keys))


@every_impl
@pytest.mark.parametrize("num_keys", [9, 131])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["query", "sub_keys", "both"])
def test_nan_and_infinity_stay_in_range(impl: str, num_keys: int, bad: float, where: str) -> None:
    query, sub_keys = torch.randn(20, 2, 2, 4), torch.randn(2, 2, num_keys, 4)
    if where != "sub_keys":
        query[3, 0, 1] = bad
    if where != "query":
        sub_keys[1, 0, ::2] = bad
    _, slots = product_key_topk(query, sub_keys, 6, impl=impl)
    assert ((slots >= 0) & (slots < num_keys**2)).all()
    assert (slots.sort(dim=-1).values.diff(dim=-1) > 0).all()


@every_impl
@pytest.mark.parametrize("num_keys", [9, 131])
def test_nan_reaches_the_scores_of_its_token_alone(impl: str, num_keys: int) -> None:
    query, sub_keys = torch.randn(20, 1, 2, 4), torch.randn(1, 2, num_keys, 4)
    clean, _ = product_key_topk(query, sub_keys, 6, impl=impl)
    query[5, 0, 1, 2] = float("nan")
    scores, _ = product_key_topk(query, sub_keys, 6, impl=impl)
    assert scores[5].isnan().all()
    others = torch.arange(20) != 5
    torch.testing.assert_close(scores[others], clean[others], rtol=0, atol=1e-5)


def test_scores_of_zero_where_denormals_are_flushed() -> None:
    """A score and its index are one fp64 number: it must not become zero with the score."""
    program = """
import torch
from memory_layers import product_key_topk
assert torch.set_flush_denormal(True)
query = torch.zeros(17, 1, 2, 4)
for impl in ("cpu", "reference"):
    slots = product_key_topk(query, torch.randn(1, 2, 131, 4), 8, impl=impl)[1]
    assert (slots.sort(dim=-1).values.diff(dim=-1) > 0).all(), impl
"""
    fresh_interpreter(program)


def test_gradcheck_of_the_reference() -> None:
    query = torch.randn(3, 2, 2, 4, dtype=torch.float64, requires_grad=True)
    sub_keys = torch.randn(2, 2, 6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, s: product_key_topk(q, s, 4)[0], (query, sub_keys))


@every_impl
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES)
def test_gradients(impl: str, dtype: torch.dtype, size: tuple[int, ...]) -> None:
    """Against autograd through the scores of the same slots, written out in fp64."""
    tokens, heads, num_keys, width, k = size
    query = torch.randn(tokens, heads, 2, width).to(dtype).requires_grad_()
    sub_keys = torch.randn(heads, 2, num_keys, width).to(dtype).requires_grad_()
    scores, slots = product_key_topk(query, sub_keys, k, impl=impl)
    d_scores = torch.randn(scores.shape)
    actual = torch.autograd.grad(scores, (query, sub_keys), d_scores)

    def plain(q: Tensor, keys: Tensor) -> Tensor:
        head = torch.arange(heads)[None, :, None]
        first, second = keys[head, 0, slots // num_keys], keys[head, 1, slots % num_keys]
        return torch.einsum("thc,thkc->thk", q[:, :, 0], first) + torch.einsum(
            "thc,thkc->thk", q[:, :, 1], second
        )

    exact_inputs = [x.detach().double().requires_grad_() for x in (query, sub_keys)]
    exact = torch.autograd.grad(plain(*exact_inputs), exact_inputs, d_scores.double())
    abs_inputs = [x.detach().double().abs().requires_grad_() for x in (query, sub_keys)]
    sizes = torch.autograd.grad(plain(*abs_inputs), abs_inputs, d_scores.double().abs())
    for result, answer, size_ in zip(actual, exact, sizes, strict=True):
        assert result.dtype == dtype
        limit = torch.finfo(dtype).eps / 2 * answer.abs() + 2 * FP32_EPS * size_
        assert ((result.double() - answer).abs() <= limit).all()


@every_impl
def test_expanded_gradient(impl: str) -> None:
    query = torch.randn(5, 2, 2, 4, requires_grad=True)
    sub_keys = torch.randn(2, 2, 9, 4, requires_grad=True)
    scores, _ = product_key_topk(query, sub_keys, 3, impl=impl)
    expanded = torch.autograd.grad(scores.sum(), (query, sub_keys), retain_graph=True)
    written_out = torch.autograd.grad(scores, (query, sub_keys), torch.ones(5, 2, 3))
    for a, b in zip(expanded, written_out, strict=True):
        assert torch.equal(a, b)


@every_impl
def test_second_gradient_is_refused(impl: str) -> None:
    query, sub_keys = torch.randn(2, 1, 2, 4, requires_grad=True), torch.randn(1, 2, 5, 4)
    scores, _ = product_key_topk(query, sub_keys, 3, impl=impl)
    (grad,) = torch.autograd.grad(scores.square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        grad.sum().backward()


@every_impl
def test_slots_carry_no_gradient(impl: str) -> None:
    query = torch.randn(2, 1, 2, 4, requires_grad=True)
    scores, slots = product_key_topk(query, torch.randn(1, 2, 5, 4), 3, impl=impl)
    assert scores.requires_grad
    assert not slots.requires_grad


@every_impl
def test_strided_inputs(impl: str) -> None:
    query = torch.randn(2, 4, 2, 7).permute(3, 0, 2, 1)  # [7, 2, 2, 4]
    sub_keys = torch.randn(4, 9, 2, 2).permute(3, 2, 1, 0)  # [2, 2, 9, 4]
    scores, slots = product_key_topk(query, sub_keys, 3, impl=impl)
    exact = exact_pair_scores(query, sub_keys)
    assert_same_selection(scores, slots, exact, magnitude(query, sub_keys))


@every_impl
def test_autocast_does_not_round(impl: str) -> None:
    query, sub_keys = torch.randn(7, 2, 2, 8), torch.randn(2, 2, 20, 8)
    plain = product_key_topk(query, sub_keys, 5, impl=impl)
    with torch.autocast("cpu", torch.bfloat16):
        cast = product_key_topk(query, sub_keys, 5, impl=impl)
    assert torch.equal(cast[0], plain[0])
    assert torch.equal(cast[1], plain[1])


@pytest.mark.usefixtures("two_threads")
def test_result_does_not_depend_on_threads() -> None:
    query = torch.randint(-3, 4, (70, 2, 2, 4)).float().requires_grad_()
    sub_keys = torch.randint(-3, 4, (2, 2, 50, 4)).float().requires_grad_()
    results = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        scores, slots = product_key_topk(query, sub_keys, 6, impl="cpu")
        results.append((scores, slots, *torch.autograd.grad(scores.sum(), (query, sub_keys))))
    for many, one in zip(*results, strict=True):
        assert torch.equal(many, one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, r"k must lie in \[1, M\] with M = 5 sub-keys, got 0"),
        ({"k": 6}, r"k must lie in \[1, M\] with M = 5 sub-keys, got 6"),
        ({"query": torch.randn(3, 2, 4)}, r"query must have shape \[T, H, 2, C\]"),
        ({"query": torch.randn(3, 2, 3, 4)}, r"query must have shape \[T, H, 2, C\]"),
        ({"query": torch.randn(3, 1, 2, 4)}, r"sub_keys must have shape \[H=1, 2, M, C=4\]"),
        ({"query": torch.randn(3, 2, 2, 6)}, r"sub_keys must have shape \[H=2, 2, M, C=6\]"),
        ({"query": torch.ones(3, 2, 2, 4).long()}, "query must be floating point"),
        ({"sub_keys": torch.randn(2, 2, 5, 4, device="meta")}, "sub_keys on meta"),
        ({"query": torch.randn(3, 2, 2, 4).double(), "impl": "cpu"}, "supports float32"),
        ({"impl": "numba"}, "impl must be"),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, object], message: str) -> None:
    good = {"query": torch.randn(3, 2, 2, 4), "sub_keys": torch.randn(2, 2, 5, 4), "k": 3}
    with pytest.raises(ValueError, match=message):
        product_key_topk(**{**good, **changes})


def test_auto_takes_the_kernel_where_it_can() -> None:
    """Else the tests of impl="auto" would test the reference against itself."""
    assert choose("auto", "op", torch.zeros(1), torch.zeros(1).bfloat16()) == "cpu"
    assert choose("auto", "op", torch.zeros(1).double()) == "reference"
    assert choose("auto", "op", torch.zeros(1, device="meta")) == "reference"
    assert choose("reference", "op", torch.zeros(1)) == "reference"
