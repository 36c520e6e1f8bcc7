"""FIND in plain PyTorch: defines correct, on any device and in any floating-point type."""

import torch
from torch import Tensor

from memory_layers.ops.dispatch import sum_dtype


def product_key_topk(query: Tensor, sub_keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Best k of each half, then the best k of the k * k pairs."""
    dtype = sum_dtype(query, sub_keys)
    half_scores = torch.einsum("thpc,hpmc->thpm", query.to(dtype), sub_keys.to(dtype))
    best, index = half_scores.topk(k, dim=-1)  # [T, H, 2, K]
    pairs = best[:, :, 0, :, None] + best[:, :, 1, None, :]  # [T, H, K, K]
    scores, pair = pairs.flatten(2).topk(k, dim=-1)  # [T, H, K]
    i = index[:, :, 0].gather(-1, pair // k)
    j = index[:, :, 1].gather(-1, pair % k)
    return scores, i * sub_keys.shape[2] + j


def product_key_topk_backward(
    d_scores: Tensor, slots: Tensor, query: Tensor, sub_keys: Tensor
) -> tuple[Tensor, Tensor]:
    """Each selected score passes its gradient to one sub-key of each half, and to the query."""
    dtype = sum_dtype(query, sub_keys)
    num_sub_keys = sub_keys.shape[2]
    index = torch.stack((slots // num_sub_keys, slots % num_sub_keys), dim=2)  # [T, H, 2, K]
    d_half = torch.zeros(*query.shape[:3], num_sub_keys, dtype=dtype, device=query.device)
    d_half.scatter_add_(-1, index, d_scores.to(dtype)[:, :, None].expand(index.shape))
    d_query = torch.einsum("thpm,hpmc->thpc", d_half, sub_keys.to(dtype))
    d_sub_keys = torch.einsum("thpm,thpc->hpmc", d_half, query.to(dtype))
    return d_query.to(query.dtype).contiguous(), d_sub_keys.to(sub_keys.dtype).contiguous()
