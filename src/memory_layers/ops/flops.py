"""Operation counts of FIND and READ, known to torch.utils.flop_counter.FlopCounterMode.

A multiply-add counts as two, as torch counts matrix products.
"""

import math
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import register_flop_formula

_OPS = torch.ops.memory_layers
_Shape = Sequence[int]


@register_flop_formula(_OPS.product_key_topk)
def _find(query: _Shape, sub_keys: _Shape, *_args: object, **_kwargs: object) -> int:
    return 2 * math.prod(query) * sub_keys[2]


@register_flop_formula(_OPS.product_key_topk_backward)
def _find_backward(
    d_scores: _Shape, _slots: _Shape, query: _Shape, *_args: object, **_kwargs: object
) -> int:
    return 2 * (2 * 2 * math.prod(d_scores) * query[3])


@register_flop_formula([_OPS.gather_sum, _OPS.gather_dot])
def _gather(table: _Shape, slots: _Shape, *_args: object, **_kwargs: object) -> int:
    return 2 * math.prod(slots) * table[1]


@register_flop_formula(_OPS.scatter_sum)
def _scatter_sum(
    slots: _Shape, _weights: _Shape, x: _Shape, *_args: object, **_kwargs: object
) -> int:
    return 2 * math.prod(slots) * x[1]
