"""Every registered operation against torch.library.opcheck: schema, fake, autograd, AOT."""

import pytest
import torch
from helpers import IMPLS

from memory_layers import gather_sum, product_key_topk  # noqa: F401  (registers their folders)
from memory_layers.ops.write import group_by_row

OPS = torch.ops.memory_layers
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
every_kernel = [(impl, dtype) for impl in IMPLS for dtype in DTYPES]
pytestmark = [
    pytest.mark.parametrize(("impl", "dtype"), every_kernel),
    # opcheck itself warns where it looks at .grad of a tensor that is not a leaf.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor"),
]


def leaf(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_()


def test_gather_sum(impl: str, dtype: str) -> None:
    slots = torch.tensor([[0, 4, 4], [1, 1, 2]])
    table, weights = leaf(5, 3, dtype=DTYPES[dtype]), leaf(2, 3, dtype=torch.float32)
    torch.library.opcheck(OPS.gather_sum, (table, slots, weights, impl))


def test_gather_dot(impl: str, dtype: str) -> None:
    slots = torch.tensor([[0, 4, 4], [1, 1, 2]])
    table, x = leaf(5, 3, dtype=DTYPES[dtype]), leaf(2, 3, dtype=DTYPES[dtype])
    torch.library.opcheck(OPS.gather_dot, (table, slots, x, impl))


def test_scatter_sum(impl: str, dtype: str) -> None:
    slots = torch.tensor([[0, 4, 4], [1, 1, 2]])
    weights, x = leaf(2, 3, dtype=torch.float32), leaf(2, 3, dtype=DTYPES[dtype])
    torch.library.opcheck(OPS.scatter_sum, (slots, weights, x, 5, impl))


def test_product_key_topk(impl: str, dtype: str) -> None:
    query, sub_keys = leaf(3, 2, 2, 4, dtype=DTYPES[dtype]), leaf(2, 2, 5, 4, dtype=DTYPES[dtype])
    torch.library.opcheck(OPS.product_key_topk, (query, sub_keys, 3, impl))


def test_product_key_topk_backward(impl: str, dtype: str) -> None:
    query, sub_keys = torch.randn(3, 2, 2, 4), torch.randn(2, 2, 5, 4)
    slots = torch.randint(25, (3, 2, 3))
    typed = [x.to(DTYPES[dtype]) for x in (query, sub_keys)]
    torch.library.opcheck(
        OPS.product_key_topk_backward, (torch.randn(3, 2, 3), slots, *typed, impl)
    )


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_row_step(impl: str, dtype: str, rule: str, momentum: bool) -> None:
    table = torch.randn(6, 3).to(DTYPES[dtype])
    slots = torch.tensor([[1, 4], [1, 0]])
    gradient = group_by_row(slots, torch.randn(2, 2), torch.randn(2, 3)).scaled(0.5)
    factors = (gradient.entries, gradient.weights, gradient.vectors, gradient.scale)
    first, second = torch.randn(6, 3) if momentum else None, torch.rand(6, 3)
    moments = (first, second) if rule == "adamw" else (None, None)
    decayed = -torch.rand(6, dtype=torch.float64)
    numbers = (2, -1.0, 0.1, (0.9, 0.95), 1e-8, None)
    is_ahead = None not in moments
    last = (torch.ones(6, dtype=torch.int32), torch.rand(6)) if is_ahead else (None, None)
    torch.library.opcheck(
        OPS.row_step_, (table, *moments, decayed, None, *last, *factors, rule, *numbers, impl)
    )
