"""Operation counts of FIND and READ, known to torch.utils.flop_counter.FlopCounterMode.

A multiply-add counts as two, as torch counts matrix products.
"""

import math
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import register_flop_formula

_OPS = torch.ops.memory_layers


@register_flop_formula(_OPS.product_key_topk)
def _product_key_topk(
    query: Sequence[int], sub_keys: Sequence[int], *_args: object, **_kwargs: object
) -> int:
    return 2 * math.prod(query) * sub_keys[2]


@register_flop_formula(_OPS.product_key_topk_backward)
def _product_key_topk_backward(
    d_scores: Sequence[int],
    _slots: Sequence[int],
    query: Sequence[int],
    *_args: object,
    **_kwargs: object,
) -> int:
    return 2 * (2 * 2 * math.prod(d_scores) * query[3])


@register_flop_formula(_OPS.gather_sum)
def _gather_sum(
    table: Sequence[int], slots: Sequence[int], *_args: object, **_kwargs: object
) -> int:
    return 2 * math.prod(slots) * table[1]


@register_flop_formula(_OPS.gather_dot)
def _gather_dot(
    table: Sequence[int], slots: Sequence[int], *_args: object, **_kwargs: object
) -> int:
    return 2 * math.prod(slots) * table[1]


@register_flop_formula(_OPS.scatter_sum)
def _scatter_sum(
    slots: Sequence[int], _weights: Sequence[int], x: Sequence[int], *_args: object, **_kw: object
) -> int:
    return 2 * math.prod(slots) * x[1]
