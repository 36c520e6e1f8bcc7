"""FIND: `product_key_topk` against a matrix product and three torch.topk."""

import torch
from torch import Tensor

from benchmarks.checks import FP32_EPS, check_selected, check_selection, sample_of
from benchmarks.harness import Suite, Variant, pair
from benchmarks.inputs import DTYPES, SEED, Request
from memory_layers.ops.find import product_key_topk

OURS, BASELINE = "product_key_topk", "matmul + three topk"
SELECTION, SELECTION_BASELINE = "selection alone", "three topk alone"


def three_topk(half_scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the best k of each half, then the best k of all k * k pairs.

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


def find_suite(request: Request) -> Suite:
    """Time the whole of FIND, and on the CPU the selection alone, on scores that are given."""
    variants: list[Variant] = []
    for name in request.sizes.dtypes:
        variants += _whole(request, name, *_inputs(request, DTYPES[name]))
    if request.device.type == "cpu" and not request.as_on_gpu:
        query, sub_keys = _inputs(request, torch.float32)
        scores = (query.permute(1, 2, 0, 3) @ sub_keys.transpose(-1, -2)).contiguous()
        variants += _selection(request, scores)
    return Suite(tuple(variants))


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
        scores, slots = ours()
        found = (scores[sample], slots[sample])
        check_selection(f"{OURS} {name}", found, query[sample], sub_keys)

    def check_baseline() -> None:
        scores, slots = (x.transpose(0, 1)[sample] for x in baseline())
        # Its scores are rounded to the type of the inputs, twice.
        eps = torch.finfo(query.dtype).eps
        check_selection(f"{BASELINE} {name}", (scores, slots), query[sample], sub_keys, eps=eps)

    return pair(
        (f"{OURS} {name}", ours, check_ours),
        (f"{BASELINE} {name}", baseline, check_baseline),
        checked=f"scores and slots of {len(sample)} tokens",
        bytes=query.nbytes + sub_keys.nbytes + outputs,
        tokens=len(query),
    )


def _selection(request: Request, half_scores: Tensor) -> list[Variant]:
    from memory_layers.ops.find.cpu import select_pairs

    k = request.sizes.top_k
    sample = sample_of(half_scores.shape[2], request.device)
    halves = half_scores[:, :, sample].double()
    best = three_topk(halves, k)[0].transpose(0, 1)
    # Only the sum of a pair is rounded.
    limit = FP32_EPS * best.abs().amax(dim=-1, keepdim=True)

    def check(name: str, scores: Tensor, slots: Tensor) -> None:
        found = (scores[sample], slots[sample])
        check_selected(name, found, halves.permute(2, 0, 1, 3), best, limit)

    def check_baseline() -> None:
        scores, slots = three_topk(half_scores, k)
        check(SELECTION_BASELINE, scores.transpose(0, 1), slots.transpose(0, 1))

    return pair(
        (
            SELECTION,
            lambda: select_pairs(half_scores, k),
            lambda: check(SELECTION, *select_pairs(half_scores, k)),
        ),
        (SELECTION_BASELINE, lambda: three_topk(half_scores, k), check_baseline),
        checked=f"scores and slots of {len(sample)} tokens",
        bytes=half_scores.nbytes + half_scores[:, 0, :, 0].numel() * k * (4 + 8),
        tokens=half_scores.shape[2],
    )


def _inputs(request: Request, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Draw queries and sub-keys as the layer makes them: normalised, scores of about 1."""
    sizes = request.sizes
    generator = torch.Generator().manual_seed(SEED)
    query = torch.randn(sizes.tokens, sizes.heads, 2, sizes.half_dim, generator=generator)
    sub_keys = torch.randn(sizes.heads, 2, sizes.sub_keys, sizes.half_dim, generator=generator)
    query = query * sizes.half_dim**-0.5
    return query.to(request.device, dtype), sub_keys.to(request.device, dtype)
