"""READ: `gather_sum` and `gather_dot` against torch's embedding_bag, forward and backward.

Two more suites time `gather_sum` for a choice of the package: in huge pages, and at many sizes.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from benchmarks.checks import FP32_EPS, check_sum, exact_product, sample_of
from benchmarks.harness import Suite, Timed, Variant, pair
from benchmarks.inputs import DTYPES, Reads, Request, make_reads, make_table, make_vectors
from memory_layers.common.errors import UserError
from memory_layers.ops.huge_pages import advise_huge_pages
from memory_layers.ops.read import gather_dot, gather_sum

SUM, DOT = "gather_sum", "gather_dot"
BAG, BAG_BACKWARD = "embedding_bag", "embedding_bag backward to its weights"
# The sizes at which gather_sum and embedding_bag are compared: N, V, T, J.
GRID = ((2**14, 2**20), (64, 256, 512, 1024), (1, 16, 256, 2048), (16, 64, 128))


def bag(weight: Tensor, slots: Tensor, weights: Tensor, *, sparse: bool = False) -> Tensor:
    """Read as torch does, with a dense or a sparse gradient of the table."""
    return F.embedding_bag(slots, weight, mode="sum", per_sample_weights=weights, sparse=sparse)


def read_suite(request: Request) -> Suite:
    """Time both reads from an fp32 and a bf16 table."""
    reads = make_reads(request)
    variants: list[Variant] = []
    for name in request.sizes.dtypes:
        table = make_table(reads.num_rows, reads.width, DTYPES[name], request.device)
        variants += _sums(request, name, table, reads)
        variants += _dots(request, name, table, reads)
    return Suite(tuple(variants), reads.facts)


def pages_suite(request: Request) -> Suite:
    """Time the same rows of two tables, one in huge pages.

    Raises:
        UserError: The table is too small, or the system has no huge pages.
    """
    reads, (name,) = make_reads(request), request.sizes.dtypes
    huge = make_table(reads.num_rows, reads.width, DTYPES[name], request.device)
    if not advise_huge_pages(huge):
        raise UserError(
            f"a table of {huge.nbytes / 2**20:.1f} MiB gets no huge pages here. hint: Linux gives "
            "them to tables of 4 MiB on the CPU"
        )
    small = torch.empty_like(huge).copy_(huge)
    ours, _ = _sums(request, f"{name}, huge pages", huge, reads)
    baseline, _ = _sums(request, f"{name}, small pages", small, reads)
    ours, baseline = replace(ours, against=(baseline.name,)), replace(baseline, against=())
    return Suite((ours, baseline), reads.facts)


def bag_suite(request: Request) -> Suite:
    """Time `gather_sum` and embedding_bag at many sizes, on other random rows each time."""
    num_rows, widths, tokens, reads = GRID
    variants: list[Variant] = []
    for dtype in request.sizes.dtypes:
        largest = make_table(max(num_rows), max(widths), DTYPES[dtype], request.device).flatten()
        for n, v, t, j in product(num_rows, widths, tokens, reads):
            top_k = j // request.sizes.heads
            sizes = replace(request.sizes, slots=n, value_dim=v, tokens=t, top_k=top_k)
            drawn = make_reads(replace(request, sizes=sizes))

            def draw_again(slots: Tensor = drawn.slots, n: int = n) -> None:
                # Rows that the call before has read would come from a cache.
                slots.random_(n)

            name = f"{dtype}, N = {n}, V = {v}, T = {t}, J = {j}"
            sums = _sums(request, name, largest[: n * v].view(n, v), drawn)
            variants += [replace(variant, prepare=draw_again) for variant in sums]
    return Suite(tuple(variants))


def _sums(request: Request, name: str, table: Tensor, reads: Reads) -> list[Variant]:
    slots, weights = reads.slots, reads.weights
    # embedding_bag takes weights of the table's type alone.
    own_weights = weights.to(table.dtype)
    sample = sample_of(len(slots), request.device)

    def timed(label: str, run: Callable[[], Tensor], weights: Tensor, eps: float) -> Timed:
        def check() -> None:
            exact, magnitude = exact_product(weights[sample][:, None], table[slots[sample]])
            bounds = exact[:, 0], magnitude[:, 0]
            check_sum(label, run()[sample], *bounds, terms=slots.shape[1], sum_eps=eps)

        return label, run, check

    return pair(
        timed(
            f"{SUM} {name}",
            lambda: gather_sum(table, slots, weights, impl=request.impl),
            weights,
            FP32_EPS,
        ),
        timed(
            f"{BAG} {name}",
            lambda: bag(table, slots, own_weights),
            own_weights,
            torch.finfo(table.dtype).eps,
        ),
        checked=f"the read of {len(sample)} tokens",
        bytes=slots.numel() * table[0].nbytes
        + reads.factor_bytes
        + len(slots) * table.shape[1] * torch.float32.itemsize,
        tokens=len(slots),
    )


def _dots(request: Request, name: str, table: Tensor, reads: Reads) -> list[Variant]:
    slots = reads.slots
    x = make_vectors(len(slots), table.shape[1], request.device)
    own_x = x.to(table.dtype)
    sample = sample_of(len(slots), request.device)
    leaf = reads.weights.to(table.dtype).requires_grad_()
    graph = bag(table, slots, leaf)

    def timed(label: str, run: Callable[[], Tensor], x: Tensor, eps: float) -> Timed:
        def check() -> None:
            exact, magnitude = exact_product(table[slots[sample]], x[sample][..., None])
            bounds = exact[..., 0], magnitude[..., 0]
            check_sum(label, run()[sample], *bounds, terms=table.shape[1], sum_eps=eps)

        return label, run, check

    return pair(
        timed(f"{DOT} {name}", lambda: gather_dot(table, slots, x, impl=request.impl), x, FP32_EPS),
        timed(
            f"{BAG_BACKWARD} {name}",
            lambda: torch.autograd.grad(graph, leaf, own_x, retain_graph=True)[0],
            own_x,
            torch.finfo(table.dtype).eps,
        ),
        checked=f"the dot products of {len(sample)} tokens",
        bytes=slots.numel() * (table[0].nbytes + torch.float32.itemsize) + slots.nbytes + x.nbytes,
        tokens=len(slots),
    )
