"""READ: `gather_sum` and `gather_dot` against torch's embedding_bag, forward and backward."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.baselines import bag
from benchmarks.checks import FP32_EPS, check_sum, sample_of
from benchmarks.harness import Suite, Variant
from benchmarks.inputs import Reads, make_reads, make_table, make_vectors
from benchmarks.request import DTYPES, Request
from memory_layers.ops.read import gather_dot, gather_sum

SUM, DOT = "gather_sum", "gather_dot"
BAG, BAG_BACKWARD = "embedding_bag", "embedding_bag backward to its weights"


def read_suite(request: Request) -> Suite:
    """Time both reads from an fp32 and a bf16 table."""
    reads = make_reads(request)
    variants: list[Variant] = []
    for name in request.sizes.dtypes:
        table = make_table(reads.num_rows, reads.width, DTYPES[name], request.device)
        variants += _sums(request, name, table, reads)
        variants += _dots(request, name, table, reads)
    return Suite(tuple(variants), reads.facts)


def _sums(request: Request, name: str, table: Tensor, reads: Reads) -> list[Variant]:
    slots, weights = reads.slots, reads.weights
    # embedding_bag takes weights of the table's type alone.
    own_weights = weights.to(table.dtype)
    sample = sample_of(len(slots), request.device)

    def variant(label: str, run: Callable[[], Tensor], weights: Tensor, eps: float) -> Variant:
        def check() -> None:
            rows = table[slots[sample]].double()
            factors = weights[sample].double()[:, None, :]
            exact, magnitude = (factors @ rows)[:, 0], (factors.abs() @ rows.abs())[:, 0]
            check_sum(label, run()[sample], exact, magnitude, terms=slots.shape[1], sum_eps=eps)

        out_bytes = len(slots) * table.shape[1] * torch.float32.itemsize
        ours = label.startswith(SUM)
        return Variant(
            name=label,
            run=run,
            check=check,
            checked=f"the read of {len(sample)} tokens",
            bytes=slots.numel() * table[0].nbytes + reads.factor_bytes + out_bytes,
            against=(f"{BAG} {name}",) if ours else (),
            ours=ours,
            tokens=len(slots),
        )

    eps = torch.finfo(table.dtype).eps
    return [
        variant(
            f"{SUM} {name}",
            lambda: gather_sum(table, slots, weights, impl=request.impl),
            weights,
            FP32_EPS,
        ),
        variant(f"{BAG} {name}", lambda: bag(table, slots, own_weights), own_weights, eps),
    ]


def _dots(request: Request, name: str, table: Tensor, reads: Reads) -> list[Variant]:
    slots = reads.slots
    x = make_vectors(len(slots), table.shape[1], request.device)
    own_x = x.to(table.dtype)
    sample = sample_of(len(slots), request.device)
    leaf = reads.weights.to(table.dtype).requires_grad_()
    graph = bag(table, slots, leaf)

    def backward() -> Tensor:
        return torch.autograd.grad(graph, leaf, own_x, retain_graph=True)[0]

    def variant(label: str, run: Callable[[], Tensor], x: Tensor, eps: float) -> Variant:
        def check() -> None:
            rows = table[slots[sample]].double()
            vectors = x[sample].double()[:, :, None]
            exact, magnitude = (rows @ vectors)[..., 0], (rows.abs() @ vectors.abs())[..., 0]
            check_sum(label, run()[sample], exact, magnitude, terms=table.shape[1], sum_eps=eps)

        ours = label.startswith(DOT)
        vector_bytes = x.numel() * torch.float32.itemsize
        return Variant(
            name=label,
            run=run,
            check=check,
            checked=f"the dot products of {len(sample)} tokens",
            bytes=slots.numel() * (table[0].nbytes + torch.float32.itemsize)
            + slots.nbytes
            + vector_bytes,
            against=(f"{BAG_BACKWARD} {name}",) if ours else (),
            ours=ours,
            tokens=len(slots),
        )

    return [
        variant(
            f"{DOT} {name}", lambda: gather_dot(table, slots, x, impl=request.impl), x, FP32_EPS
        ),
        variant(f"{BAG_BACKWARD} {name}", backward, own_x, torch.finfo(table.dtype).eps),
    ]
