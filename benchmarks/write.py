"""WRITE: one optimizer step of the touched rows, from the reads that are pending."""

import torch
from torch import Tensor

from benchmarks.check import SAMPLE
from benchmarks.inputs import Reads, make_reads, make_vectors
from benchmarks.request import Request
from benchmarks.sizes import DTYPES
from benchmarks.stepping import SPARSE_ROUNDS, RowCheck, SteppedTable, bag
from benchmarks.variant import Suite, Variant

OURS = "MemoryAdamW"
DENSE, SPARSE = "AdamW(fused=True), dense gradient", "SparseAdam, sparse gradient"


def write_suite(request: Request) -> Suite:
    """Time `optimizer.step()` alone, the sorting of the reads included."""
    reads = make_reads(request)
    dtype = DTYPES[request.sizes.dtype]
    state = SteppedTable(reads.num_rows, reads.width, dtype, request.device)
    d_out = make_vectors(len(reads.slots), reads.width, request.device)
    check = RowCheck(state, reads, d_out)
    distinct = reads.distinct
    num_bytes = reads.factor_bytes + d_out.nbytes + state.written_bytes(distinct)
    variants = [
        _ours(state, reads, d_out, check, num_bytes),
        *_baselines(state, reads, d_out, check, num_bytes),
    ]
    facts = {"distinct_rows": distinct, "distribution": reads.distribution}
    return Suite(tuple(variants), facts)


def _ours(
    state: SteppedTable, reads: Reads, d_out: Tensor, check: RowCheck, num_bytes: int
) -> Variant:
    def prepare() -> None:
        state.weight.grad = None
        state.table(reads.slots, reads.weights).backward(d_out)

    def checked() -> None:
        prepare()
        check(OURS, state.ours, state.ours.step, lazy=True)

    return Variant(
        name=OURS,
        run=state.ours.step,
        check=checked,
        checked=f"{2 * SAMPLE} rows and their moments after a step",
        prepare=prepare,
        bytes=num_bytes,
        against=(DENSE, SPARSE),
        ours=True,
        tokens=len(reads.slots),
    )


def _baselines(
    state: SteppedTable, reads: Reads, d_out: Tensor, check: RowCheck, num_bytes: int
) -> list[Variant]:
    variants = []
    optimizers: tuple[tuple[str, torch.optim.Optimizer], ...] = (
        (DENSE, state.dense),
        (SPARSE, state.sparse),
    )
    for name, optimizer in optimizers:
        # Made once, by torch: an optimizer does not change the gradient that it is given.
        state.weight.grad = None
        own = [x.to(state.weight.dtype) for x in (reads.weights, d_out)]
        bag(state.weight, reads.slots, own[0], sparse=name == SPARSE).backward(own[1])
        gradient = state.weight.grad
        variants.append(_baseline(name, optimizer, gradient, state, check, num_bytes))
    state.weight.grad = None
    return variants


def _baseline(
    name: str,
    optimizer: torch.optim.Optimizer,
    gradient: Tensor | None,
    state: SteppedTable,
    check: RowCheck,
    num_bytes: int,
) -> Variant:
    def prepare() -> None:
        state.weight.grad = gradient

    def checked() -> None:
        prepare()
        eps = torch.finfo(state.weight.dtype).eps
        check(name, optimizer, optimizer.step, lazy=name == SPARSE, arithmetic_eps=eps)

    return Variant(
        name=name,
        run=optimizer.step,
        check=checked,
        checked=f"{2 * SAMPLE} rows and their moments after a step",
        prepare=prepare,
        bytes=num_bytes,
        tokens=check.reads.slots.shape[0],
        most_rounds=SPARSE_ROUNDS if name == SPARSE else None,
    )
