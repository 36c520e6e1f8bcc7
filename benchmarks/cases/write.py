"""WRITE: one optimizer step of the touched rows, from the reads that are pending."""

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.baselines import bag
from benchmarks.cases.stepped import SPARSE_ROUNDS, RowCheck, SteppedTable
from benchmarks.checks import FP32_EPS, SAMPLE
from benchmarks.harness import Suite, Variant
from benchmarks.inputs import make_reads, make_vectors
from benchmarks.request import DTYPES, Request

OURS = "MemoryAdamW"
DENSE, SPARSE = "AdamW(fused=True), dense gradient", "SparseAdam, sparse gradient"


def write_suite(request: Request) -> Suite:
    """Time `optimizer.step()` alone, the sorting of the reads included."""
    reads = make_reads(request)
    dtype = DTYPES[request.sizes.dtype]
    state = SteppedTable(reads.num_rows, reads.width, dtype, request.device)
    d_out = make_vectors(len(reads.slots), reads.width, request.device)
    check = RowCheck(state, reads, d_out)
    variant = partial(
        Variant,
        checked=f"{2 * SAMPLE} rows and their moments after a step",
        bytes=reads.factor_bytes + d_out.nbytes + state.written_bytes(reads.distinct),
        tokens=len(reads.slots),
    )

    def checked(
        name: str, optimizer: torch.optim.Optimizer, prepare: Callable[[], None], eps: float
    ) -> Callable[[], None]:
        def run() -> None:
            prepare()
            check(name, optimizer, optimizer.step, lazy=name != DENSE, arithmetic_eps=eps)

        return run

    def read_again() -> None:
        state.weight.grad = None
        state.table(reads.slots, reads.weights).backward(d_out)

    variants = [
        variant(
            name=OURS,
            run=state.ours.step,
            check=checked(OURS, state.ours, read_again, FP32_EPS),
            prepare=read_again,
            against=(DENSE, SPARSE),
            ours=True,
        )
    ]
    optimizers: tuple[tuple[str, torch.optim.Optimizer], ...] = (
        (DENSE, state.dense),
        (SPARSE, state.sparse),
    )
    for name, optimizer in optimizers:
        # Made once, by torch: an optimizer does not change the gradient that it is given.
        state.weight.grad = None
        own = [x.to(dtype) for x in (reads.weights, d_out)]
        bag(state.weight, reads.slots, own[0], sparse=name == SPARSE).backward(own[1])
        give = partial(setattr, state.weight, "grad", state.weight.grad)
        variants.append(
            variant(
                name=name,
                run=optimizer.step,
                check=checked(name, optimizer, give, torch.finfo(dtype).eps),
                prepare=give,
                most_rounds=SPARSE_ROUNDS if name == SPARSE else None,
            )
        )
    state.weight.grad = None
    return Suite(tuple(variants), reads.facts)
