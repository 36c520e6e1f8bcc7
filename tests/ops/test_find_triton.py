"""FIND in Triton against fp64 scores of every slot: on a GPU, or under the interpreter without one.

The interpreter is slow: sizes are small, and each is there for one path of a kernel.
"""

import pytest
import torch
from helpers import FP32_EPS, assert_same_selection, exact_pair_scores
from torch import Tensor

from memory_layers import product_key_topk
from memory_layers.ops.dispatch import TRITON_MAX_K
from memory_layers.ops.find import triton as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# tokens, heads, sub-keys, width of a half, k
SIZES = {
    "no-tokens": (0, 1, 5, 3, 2),
    "one-sub-key": (1, 1, 1, 1, 1),
    "all-sub-keys": (3, 2, 5, 4, 5),
    "all-fit-the-lists": (17, 1, 101, 20, 8),
    "several-blocks": (66, 1, 150, 5, 3),
    "odd-width": (2, 2, 130, 33, 32),
}
# The interpreter runs one program for each sub-key of a gradient: fewer of them.
GRADIENT_SIZES = {
    "one-sub-key": SIZES["one-sub-key"],
    "all-sub-keys": SIZES["all-sub-keys"],
    "several-tokens": (17, 1, 33, 20, 8),
    "odd-width": (2, 2, 37, 33, 32),
}


def in_turn(sizes: dict[str, tuple[int, ...]]) -> list[object]:
    """Every size in one type, in turn, and the one of odd width in all."""
    names = [(name, tuple(DTYPES)[place % 3]) for place, name in enumerate(sizes)]
    names += [("odd-width", dtype) for dtype in DTYPES if ("odd-width", dtype) not in names]
    return [pytest.param(sizes[name], dtype, id=f"{name}-{dtype}") for name, dtype in names]


gpu_only = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")


def find(query: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Run the kernels and bring the result to the CPU."""
    found = product_key_topk(query.to(DEVICE), sub_keys.to(DEVICE), k, impl="triton")
    return found[0].cpu(), found[1].cpu()


def magnitude(query: Tensor, sub_keys: Tensor) -> Tensor:
    return exact_pair_scores(query.abs(), sub_keys.abs()).amax(-1, keepdim=True)


@pytest.mark.parametrize(("size", "dtype"), in_turn(SIZES))
def test_selects_the_best_slots(size: tuple[int, ...], dtype: str) -> None:
    tokens, heads, num_keys, width, k = size
    query = torch.randn(tokens, heads, 2, width).to(DTYPES[dtype])
    sub_keys = torch.randn(heads, 2, num_keys, width).to(DTYPES[dtype])
    scores, slots = find(query, sub_keys, k)
    assert scores.dtype == torch.float32
    assert scores.shape == (tokens, heads, k)
    if tokens:
        exact = exact_pair_scores(query, sub_keys)
        assert_same_selection(scores, slots, exact, magnitude(query, sub_keys))


@pytest.mark.parametrize("size", list(SIZES.values())[1:], ids=list(SIZES)[1:])
def test_ties_lose_nothing(size: tuple[int, ...]) -> None:
    tokens, heads, num_keys, width, k = size
    query = torch.randint(-2, 3, (tokens, heads, 2, width)).float()
    sub_keys = torch.randint(-2, 3, (heads, 2, num_keys, width)).float()
    assert_same_selection(*find(query, sub_keys, k), exact_pair_scores(query, sub_keys), 0.0)


def test_all_scores_equal() -> None:
    query, sub_keys = torch.zeros(3, 1, 2, 3), torch.ones(1, 2, 131, 3)
    assert_same_selection(*find(query, sub_keys, 5), exact_pair_scores(query, sub_keys), 0.0)


@pytest.mark.parametrize("order", ["rising", "falling"])
@pytest.mark.parametrize("margin", [0.0, 8.0])
def test_sorted_sub_keys(monkeypatch: pytest.MonkeyPatch, order: str, margin: float) -> None:
    """Without a bound, rising scores fill the list of candidates again and again."""
    monkeypatch.setattr(kernels, "MARGIN", margin)
    rising = 1000 + torch.arange(200.0)
    scores = rising if order == "rising" else rising.flip(0)
    query, sub_keys = torch.ones(2, 1, 2, 1), scores.expand(2, 200)[None, :, :, None]
    assert_same_selection(*find(query, sub_keys, 7), exact_pair_scores(query, sub_keys), 0.0)


@pytest.mark.parametrize("margin", [-8.0, 8.0])
def test_bound_may_be_wrong(monkeypatch: pytest.MonkeyPatch, margin: float) -> None:
    """Too high a bound leaves lists short, too low a bound fills them: both are done again."""
    monkeypatch.setattr(kernels, "MARGIN", margin)
    query, sub_keys = torch.randn(5, 1, 2, 4), torch.randn(1, 2, 200, 4)
    query[2] = 0  # here every bound is right
    exact = exact_pair_scores(query, sub_keys)
    assert_same_selection(*find(query, sub_keys, 7), exact, magnitude(query, sub_keys))


# numpy, which computes for the interpreter, warns of infinity times zero.
@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_stay_in_range(bad: float) -> None:
    query, sub_keys = torch.randn(5, 2, 2, 4), torch.randn(2, 2, 70, 4)
    query[3, 0, 1] = bad
    sub_keys[1, 0, ::2] = bad
    _, slots = find(query, sub_keys, 6)
    assert ((slots >= 0) & (slots < 70**2)).all()
    assert (slots.sort(dim=-1).values.diff(dim=-1) > 0).all()


def test_nan_reaches_the_scores_of_its_token_alone() -> None:
    query, sub_keys = torch.randn(5, 1, 2, 4), torch.randn(1, 2, 70, 4)
    clean, _ = find(query, sub_keys, 6)
    query[2, 0, 1, 2] = float("nan")
    scores, _ = find(query, sub_keys, 6)
    assert scores[2].isnan().all()
    others = torch.arange(5) != 2
    torch.testing.assert_close(scores[others], clean[others], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("size", "dtype"), in_turn(GRADIENT_SIZES))
def test_gradients(size: tuple[int, ...], dtype: str) -> None:
    """Against autograd through the scores of the same slots, written out in fp64."""
    tokens, heads, num_keys, width, k = size
    query = torch.randn(tokens, heads, 2, width).to(DTYPES[dtype])
    sub_keys = torch.randn(heads, 2, num_keys, width).to(DTYPES[dtype])
    inputs = [x.to(DEVICE).requires_grad_() for x in (query, sub_keys)]
    scores, slots = product_key_topk(*inputs, k, impl="triton")
    d_scores = torch.randn(scores.shape)
    actual = torch.autograd.grad(scores, inputs, d_scores.to(DEVICE))

    def exact(q: Tensor, keys: Tensor, d_out: Tensor) -> tuple[Tensor, ...]:
        q, keys = (x.double().requires_grad_() for x in (q, keys))
        head, where = torch.arange(heads)[None, :, None], slots.cpu()
        first, second = keys[head, 0, where // num_keys], keys[head, 1, where % num_keys]
        plain = torch.einsum("thc,thkc->thk", q[:, :, 0], first) + torch.einsum(
            "thc,thkc->thk", q[:, :, 1], second
        )
        return torch.autograd.grad(plain, (q, keys), d_out.double())

    sizes = exact(query.abs(), sub_keys.abs(), d_scores.abs())
    for result, answer, size_ in zip(actual, exact(query, sub_keys, d_scores), sizes, strict=True):
        limit = torch.finfo(DTYPES[dtype]).eps / 2 * answer.abs() + 2 * FP32_EPS * size_
        assert ((result.cpu().double() - answer).abs() <= limit).all()


def test_shared_sub_keys_add_up_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several programs may share the reads of one sub-key, some of them with none to add."""
    inputs = [torch.randint(-3, 4, shape).float() for shape in ((9, 1, 2, 4), (1, 2, 7, 4))]
    d_scores, slots = torch.randint(-3, 4, (9, 1, 5)).float(), torch.randint(49, (9, 1, 5))
    arguments = [x.to(DEVICE) for x in (d_scores, slots, *inputs)]
    alone = kernels.product_key_topk_backward(*arguments)
    monkeypatch.setattr(kernels, "_num_splits", lambda *_: 3)
    shared = kernels.product_key_topk_backward(*arguments)
    for one, several in zip(alone, shared, strict=True):
        assert torch.equal(one, several)


# opcheck itself warns where it looks at .grad of a tensor that is not a leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_registration() -> None:
    inputs = [torch.randn(*shape, device=DEVICE) for shape in ((3, 1, 2, 4), (1, 2, 5, 4))]
    d_scores, slots = torch.randn(3, 1, 3, device=DEVICE), torch.randint(25, (3, 1, 3)).to(DEVICE)
    ops = torch.ops.memory_layers
    leaves = [x.clone().requires_grad_() for x in inputs]
    torch.library.opcheck(ops.product_key_topk, (*leaves, 3, "triton"))
    torch.library.opcheck(ops.product_key_topk_backward, (d_scores, slots, *inputs, "triton"))


def test_more_slots_than_the_kernels_take_is_named() -> None:
    k = TRITON_MAX_K + 1
    query, sub_keys = torch.randn(1, 1, 2, 2), torch.randn(1, 2, k, 2)
    with pytest.raises(ValueError, match=f"needs k <= {TRITON_MAX_K}, got {k}.*hint"):
        find(query, sub_keys, k)


@gpu_only
def test_forward_is_captured_in_a_graph() -> None:
    query, sub_keys = torch.randn(64, 4, 2, 64).cuda(), torch.randn(4, 2, 256, 64).cuda()
    expected = product_key_topk(query, sub_keys, 32, impl="triton")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scores, slots = product_key_topk(query, sub_keys, 32, impl="triton")
    graph.replay()
    assert torch.equal(scores, expected[0])
    assert torch.equal(slots, expected[1])
