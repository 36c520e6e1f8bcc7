"""FIND: `product_key_topk` against a matrix product and three torch.topk."""

from functools import partial

import torch
from torch import Tensor

from benchmarks.check import FP32_EPS, check_selected, check_selection, sample_of
from benchmarks.inputs import SEED
from benchmarks.request import Request
from benchmarks.sizes import DTYPES
from benchmarks.variant import Suite, Variant
from memory_layers.ops.find import product_key_topk

SELECTION = "selection alone"
SELECTION_BASELINE = "three topk alone"
BASELINE = "matmul + three topk"
OURS = "product_key_topk"


def find_suite(request: Request) -> Suite:
    """Time the whole of FIND, and on the CPU the selection alone, on scores that are given."""
    variants: list[Variant] = []
    for name in request.sizes.dtypes:
        query, sub_keys = _inputs(request, DTYPES[name])
        variants += _whole(request, name, query, sub_keys)
    if request.device.type == "cpu":
        query, sub_keys = _inputs(request, torch.float32)
        scores = (query.permute(1, 2, 0, 3) @ sub_keys.transpose(-1, -2)).contiguous()
        variants += _selection(request, scores)
    return Suite(tuple(variants))


def three_topk(half_scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Best k of each half, then the best k of all k * k pairs: what plain torch offers.

    Args:
        half_scores: [H, 2, T, M].
        k: K.

    Returns:
        Scores and slots, [H, T, K].
    """
    best, index = half_scores.topk(k, dim=-1)  # [H, 2, T, K]
    pairs = best[:, 0, :, :, None] + best[:, 1, :, None, :]  # [H, T, K, K]
    scores, pair = pairs.flatten(2).topk(k, dim=-1)  # [H, T, K]
    i = index[:, 0].gather(-1, pair // k)
    j = index[:, 1].gather(-1, pair % k)
    return scores, i * half_scores.shape[3] + j


def _whole(request: Request, name: str, query: Tensor, sub_keys: Tensor) -> list[Variant]:
    k, impl = request.sizes.top_k, request.impl
    sample = sample_of(len(query), request.device)
    outputs = query[:, :, 0, 0].numel() * k * (4 + 8)

    def ours() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return product_key_topk(query, sub_keys, k, impl=impl)

    def baseline() -> tuple[Tensor, Tensor]:
        return three_topk(query.permute(1, 2, 0, 3) @ sub_keys.transpose(-1, -2), k)

    def check_ours() -> None:
        found = ours()
        sampled = (found[0][sample], found[1][sample])
        check_selection(f"{OURS} {name}", sampled, query[sample], sub_keys)

    def check_baseline() -> None:
        scores, slots = (x.transpose(0, 1)[sample] for x in baseline())
        # Its scores are rounded to the type of the inputs, twice.
        eps = torch.finfo(query.dtype).eps
        check_selection(f"{BASELINE} {name}", (scores, slots), query[sample], sub_keys, eps=eps)

    variant = partial(
        Variant,
        checked=f"scores and slots of {len(sample)} tokens",
        bytes=query.nbytes + sub_keys.nbytes + outputs,
        tokens=len(query),
    )
    return [
        variant(
            name=f"{OURS} {name}",
            run=ours,
            check=check_ours,
            against=(f"{BASELINE} {name}",),
            ours=True,
        ),
        variant(name=f"{BASELINE} {name}", run=baseline, check=check_baseline),
    ]


def _selection(request: Request, half_scores: Tensor) -> list[Variant]:
    k = request.sizes.top_k
    sample = sample_of(half_scores.shape[2], request.device)
    halves = half_scores[:, :, sample].double()
    best = three_topk(halves, k)[0].transpose(0, 1)
    # Only the sum of a pair is rounded.
    limit = FP32_EPS * best.abs().amax(dim=-1, keepdim=True)
    variant = partial(
        Variant,
        checked=f"scores and slots of {len(sample)} tokens",
        bytes=half_scores.nbytes + half_scores[:, 0, :, 0].numel() * k * (4 + 8),
        tokens=half_scores.shape[2],
    )

    def check(name: str, scores: Tensor, slots: Tensor) -> None:
        found = (scores[sample], slots[sample])
        check_selected(name, found, halves.permute(2, 0, 1, 3), best, limit)

    def check_baseline() -> None:
        scores, slots = three_topk(half_scores, k)
        check(SELECTION_BASELINE, scores.transpose(0, 1), slots.transpose(0, 1))

    variants = [
        variant(
            name=SELECTION_BASELINE,
            run=lambda: three_topk(half_scores, k),
            check=check_baseline,
        )
    ]
    from memory_layers.ops.find.cpu import select_pairs

    ours = variant(
        name=SELECTION,
        run=lambda: select_pairs(half_scores, k),
        check=lambda: check(SELECTION, *select_pairs(half_scores, k)),
        against=(SELECTION_BASELINE,),
        ours=True,
    )
    return [ours, *variants]


def _inputs(request: Request, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Draw queries and sub-keys as the layer makes them: normalised, scores of about 1."""
    sizes = request.sizes
    generator = torch.Generator().manual_seed(SEED)
    query = torch.randn(sizes.tokens, sizes.heads, 2, sizes.half_dim, generator=generator)
    sub_keys = torch.randn(sizes.heads, 2, sizes.sub_keys, sizes.half_dim, generator=generator)
    query = query * sizes.half_dim**-0.5
    return query.to(request.device, dtype), sub_keys.to(request.device, dtype)
