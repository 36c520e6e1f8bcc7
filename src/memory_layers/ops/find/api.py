"""FIND: `product_key_topk`, the exact best k of N = M * M slots without scoring N keys."""

import torch
from torch import Tensor

from memory_layers.ops.dispatch import (
    TRITON_MAX_K,
    Impl,
    check_floating,
    check_same_device,
    kernels,
    no_autocast,
    sum_dtype,
)
from memory_layers.shapes import check_shape


def product_key_topk(
    query: Tensor, sub_keys: Tensor, k: int, *, impl: Impl = "auto"
) -> tuple[Tensor, Tensor]:
    """Find the k slots with the largest scores for every token and head.

    score(i * M + j) = query[t, h, 0] . sub_keys[h, 0, i] + query[t, h, 1] . sub_keys[h, 1, j]
    (arXiv 1907.05242 section 3.2; arXiv 2412.09764 section 2.1)

    Args:
        query: [T, H, 2, C], both halves of each head's query.
        sub_keys: [H, 2, M, C].
        k: K, slots to return, 1 to M.
        impl: "auto" takes the fastest that supports the inputs, a named one is used or raises.

    Returns:
        scores: [T, H, K] in falling order, fp32 (fp64 if an input is).
        slots: [T, H, K] int64 in [0, M * M), all different within a head. Which of several slots
            with equal scores is returned is left open.

    Gradients:
        query, sub_keys: from the K selected scores only. Once differentiable.

    Cost:
        2 * T * H * 2 * M * C operations for the scores of the halves, then a merge of at most
        k * (1 + ln k) pairs a head: the pair of ranks (i, j) can be among the best k only if
        (i + 1) * (j + 1) <= k.

    Raises:
        ValueError: Shapes, types or devices disagree, k is not in [1, M], or `impl` does not
            support these inputs.
    """
    sizes = check_shape("query", query, "T H 2 C")
    sizes = check_shape("sub_keys", sub_keys, "H 2 M C", H=sizes["H"], C=sizes["C"])
    check_floating(query=query, sub_keys=sub_keys)
    check_same_device(query=query, sub_keys=sub_keys)
    if not 1 <= k <= sizes["M"]:
        raise ValueError(f"k must lie in [1, M] with M = {sizes['M']} sub-keys, got {k}")
    return torch.ops.memory_layers.product_key_topk(query, sub_keys, k, impl)


torch.library.define(
    "memory_layers::product_key_topk",
    "(Tensor query, Tensor sub_keys, int k, str impl) -> (Tensor, Tensor)",
)
torch.library.define(
    "memory_layers::product_key_topk_backward",
    "(Tensor d_scores, Tensor slots, Tensor query, Tensor sub_keys, str impl) -> (Tensor, Tensor)",
)


def _for_k(impl: str, query: Tensor, k: int) -> str:
    too_many = k > TRITON_MAX_K and query.device.type == "cuda"
    return "reference" if impl == "auto" and too_many else impl


@torch.library.impl("memory_layers::product_key_topk", ("cpu", "cuda"))
def _forward(query: Tensor, sub_keys: Tensor, k: int, impl: str) -> tuple[Tensor, Tensor]:
    # The scores decide which slots are read: they are never rounded to an autocast type.
    with no_autocast(query.device.type):
        impl = _for_k(impl, query, k)
        ops = kernels("find", impl, "product_key_topk", query, sub_keys)
        return ops.product_key_topk(query, sub_keys, k)


@torch.library.impl("memory_layers::product_key_topk_backward", ("cpu", "cuda"))
def _backward(
    d_scores: Tensor, slots: Tensor, query: Tensor, sub_keys: Tensor, impl: str
) -> tuple[Tensor, Tensor]:
    with no_autocast(query.device.type):
        impl = _for_k(impl, query, slots.shape[2])
        ops = kernels("find", impl, "product_key_topk_backward", query, sub_keys)
        return ops.product_key_topk_backward(d_scores, slots, query, sub_keys)


@torch.library.register_fake("memory_layers::product_key_topk")
def _(query: Tensor, sub_keys: Tensor, k: int, impl: str) -> tuple[Tensor, Tensor]:
    shape = (query.shape[0], query.shape[1], k)
    scores = query.new_empty(shape, dtype=sum_dtype(query, sub_keys))
    return scores, query.new_empty(shape, dtype=torch.int64)


@torch.library.register_fake("memory_layers::product_key_topk_backward")
def _(
    d_scores: Tensor, slots: Tensor, query: Tensor, sub_keys: Tensor, impl: str
) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), sub_keys.new_empty(sub_keys.shape)


def _save(ctx, inputs: tuple, output: tuple) -> None:  # noqa: ANN001
    query, sub_keys, _, ctx.impl = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, sub_keys, output[1])


def _gradient(ctx, d_scores: Tensor, _d_slots: Tensor) -> tuple:  # noqa: ANN001
    query, sub_keys, slots = ctx.saved_tensors
    d_query, d_sub_keys = torch.ops.memory_layers.product_key_topk_backward(
        d_scores, slots, query, sub_keys, ctx.impl
    )
    return d_query, d_sub_keys, None, None


def _refuse(ctx, *_: Tensor) -> tuple:  # noqa: ANN001
    raise RuntimeError("product_key_topk can be differentiated once, not twice")


torch.library.register_autograd("memory_layers::product_key_topk", _gradient, setup_context=_save)
torch.library.register_autograd("memory_layers::product_key_topk_backward", _refuse)
