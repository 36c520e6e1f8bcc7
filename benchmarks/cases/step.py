"""READ + WRITE: forward, backward of weights and table, and the optimizer's step."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from types import MappingProxyType

import torch
from torch import Tensor

from benchmarks.baselines import bag
from benchmarks.cases.stepped import SPARSE_ROUNDS, RowCheck, SteppedTable
from benchmarks.checks import SAMPLE, check_sum, sample_of
from benchmarks.harness import Suite, Variant
from benchmarks.inputs import Reads, make_reads, make_vectors
from benchmarks.request import DTYPES, Request
from memory_layers.ops.read import gather_dot, gather_sum

OURS = "ValueTable + MemoryAdamW"
DENSE, SPARSE = "embedding_bag + AdamW(fused=True)", "embedding_bag(sparse) + SparseAdam"
# On a GPU: our own reads, and a backward of the table after arXiv 2412.09764 section 3.2.
GPU_BACKWARDS: Mapping[str, str] = MappingProxyType(
    {
        "atomic-add backward + AdamW(fused=True)": "atomic_backward",
        "count-sort-reduce backward + AdamW(fused=True)": "count_sort_reduce_backward",
    }
)
TableBackward = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def step_suite(request: Request) -> Suite:
    """Time a whole training step of a table: read, both gradients, optimizer."""
    reads = make_reads(request)
    dtype = DTYPES[request.sizes.dtype]
    state = SteppedTable(reads.num_rows, reads.width, dtype, request.device)
    on_gpu = request.device.type == "cuda" or request.as_on_gpu
    names = (OURS, DENSE, SPARSE, *(GPU_BACKWARDS if on_gpu else ()))
    return Suite(tuple(step_variants(names, state, reads)), reads.facts)


def step_variants(names: Sequence[str], state: SteppedTable, reads: Reads) -> list[Variant]:
    """Make the training steps of a table that are named.

    Args:
        names: Names of this module.
        state: Has the optimizers that they need.
        reads: What a step reads.
    """
    d_out = make_vectors(len(reads.slots), reads.width, reads.slots.device)
    check = RowCheck(state, reads, d_out)
    # Rows are read in the forward pass, and again for the gradient of the weights.
    row_reads = 2 * reads.slots.numel() * state.weight[0].nbytes
    factors = 2 * (reads.factor_bytes + d_out.nbytes)
    num_bytes = row_reads + factors + state.written_bytes(reads.distinct)
    baselines = tuple(name for name in names if name != OURS)
    variants = []
    for name in names:
        if name == OURS:
            optimizer, step = state.ours, partial(_our_step, state, reads, d_out)
        elif name in GPU_BACKWARDS:
            module = import_module("benchmarks.gpu_baselines")
            backward: TableBackward = getattr(module, GPU_BACKWARDS[name])
            optimizer, step = state.dense, partial(_paper_step, state, reads, d_out, backward)
        else:
            optimizer = state.sparse if name == SPARSE else state.dense
            step = partial(_torch_step, state, reads, d_out, name == SPARSE)
        variant = _variant(name, optimizer, step, check, num_bytes)
        variants.append(replace(variant, against=baselines if name == OURS else ()))
    return variants


def _our_step(state: SteppedTable, reads: Reads, d_out: Tensor, weights: Tensor) -> None:
    state.table(reads.slots, weights).backward(d_out)
    state.ours.step()


def _torch_step(
    state: SteppedTable, reads: Reads, d_out: Tensor, sparse: bool, weights: Tensor
) -> None:
    # weights is of the table's type for these: embedding_bag takes no other.
    out = bag(state.weight, reads.slots, weights, sparse=sparse)
    out.backward(d_out.to(out.dtype))
    (state.sparse if sparse else state.dense).step()
    # As optimizer.zero_grad() does. Keeping the buffer costs more: torch would add to it.
    state.weight.grad = None


def _paper_step(
    state: SteppedTable, reads: Reads, d_out: Tensor, backward: TableBackward, weights: Tensor
) -> None:
    with torch.no_grad():
        gather_sum(state.weight, reads.slots, weights)
        weights.grad = gather_dot(state.weight, reads.slots, d_out).to(weights.dtype)
        gradient = backward(reads.slots, weights.detach(), d_out, len(state.weight))
        state.weight.grad = gradient.to(state.weight.dtype)
        state.dense.step()
        state.weight.grad = None


def _variant(
    name: str,
    optimizer: torch.optim.Optimizer,
    step: Callable[[Tensor], None],
    check: RowCheck,
    num_bytes: int,
) -> Variant:
    state, reads = check.state, check.reads
    ours = name == OURS
    plain = name in (DENSE, SPARSE)
    dtype = state.weight.dtype if plain else reads.weights.dtype
    weights = reads.weights.to(dtype).detach().clone().requires_grad_()

    def run() -> None:
        weights.grad = None
        step(weights)

    def checked() -> None:
        sample = sample_of(len(reads.slots), weights.device)
        rows = state.weight.detach()[reads.slots[sample]].double()
        vectors = check.d_out[sample].double()[:, :, None]
        exact, magnitude = (rows @ vectors)[..., 0], (rows.abs() @ vectors.abs())[..., 0]
        eps = torch.finfo(torch.float32 if ours else state.weight.dtype).eps
        lazy = ours or name == SPARSE
        check(name, optimizer, run, lazy=lazy, arithmetic_eps=eps)
        if weights.grad is None:
            raise AssertionError(f"{name} left no gradient of the weights")
        label = f"{name}, gradient of the weights,"
        check_sum(label, weights.grad[sample], exact, magnitude, terms=reads.width, sum_eps=eps)

    return Variant(
        name=name,
        run=run,
        check=checked,
        checked=f"{2 * SAMPLE} rows, their moments, the weights' gradient of {SAMPLE} tokens",
        bytes=num_bytes,
        ours=ours,
        tokens=len(reads.slots),
        most_rounds=SPARSE_ROUNDS if name == SPARSE else None,
    )
