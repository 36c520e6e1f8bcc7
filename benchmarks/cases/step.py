"""WRITE, the optimizer's step of the touched rows, and a table's whole training step around it.

The whole step is READ, the gradients of weights and table, and WRITE. All optimizers step the same
rows and moments, and each is checked against AdamW in fp64.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.cases.read import bag
from benchmarks.checks import SAMPLE, check_close, check_sum, exact_product, sample_of
from benchmarks.harness import Suite, Variant
from benchmarks.inputs import DTYPES, Reads, Request, make_reads, make_table, make_vectors
from memory_layers.layers import ValueTable
from memory_layers.ops.read import gather_dot, gather_sum
from memory_layers.optim import MemoryAdamW

LR = 1e-3
BETAS = (0.9, 0.95)
EPS = 1e-8
# Moments at the start, about those of the gradients timed here: steps are then of the usual size.
FIRST_MOMENT = 1e-4
SECOND_MOMENT = 1e-6
# SparseAdam takes seconds a step and leaves gigabytes for the kernel to clear behind it.
SPARSE_ROUNDS = 3

WRITE = "MemoryAdamW"
WRITE_DENSE = "AdamW(fused=True), dense gradient"
WRITE_SPARSE = "SparseAdam, sparse gradient"
STEP = "ValueTable + MemoryAdamW"
STEP_DENSE, STEP_SPARSE = "embedding_bag + AdamW(fused=True)", "embedding_bag(sparse) + SparseAdam"
# On a GPU: our own reads, and a backward of the table after arXiv 2412.09764 section 3.2.
GPU_BACKWARDS: Mapping[str, str] = MappingProxyType(
    {
        "atomic-add backward + AdamW(fused=True)": "atomic_backward",
        "count-sort-reduce backward + AdamW(fused=True)": "count_sort_reduce_backward",
    }
)
TableBackward = Callable[[Tensor, Tensor, Tensor, int], Tensor]


class SteppedTable:
    """A value table with one optimizer of each kind over it.

    MemoryAdamW, fused AdamW and SparseAdam step the same rows and the same moments, so that one
    table is in memory. A bf16 table is the exception: torch's own keep bf16 moments, which are
    then theirs alone.

    Args:
        num_rows: N.
        width: V.
        dtype: Of the rows.
        device: Where it lives.
        only: "ours" or "torch" leaves the other optimizers and their moments out.
    """

    def __init__(
        self,
        num_rows: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        only: Literal["ours", "torch"] | None = None,
    ) -> None:
        self.table = value_table(make_table(num_rows, width, dtype, device))
        moments = None
        if only != "torch":
            self.ours = MemoryAdamW(self.table, lr=LR, betas=BETAS, eps=EPS, value_state="full")
            create_moments(self.table, self.ours)
            if dtype == torch.float32:
                moments = self.moments(self.ours)
        if only != "ours":
            if moments is None:
                moments = {
                    "exp_avg": torch.full_like(self.weight, FIRST_MOMENT),
                    "exp_avg_sq": torch.full_like(self.weight, SECOND_MOMENT),
                }
            self.dense = torch.optim.AdamW(
                [self.weight], lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True
            )
            self.sparse = torch.optim.SparseAdam([self.weight], lr=LR, betas=BETAS, eps=EPS)
            self.dense.state[self.weight] = {"step": torch.ones((), device=device), **moments}
            self.sparse.state[self.weight] = {"step": 1, **moments}

    @property
    def weight(self) -> nn.Parameter:
        """The rows, [N, V]."""
        return self.table.weight

    def moments(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return the two moments that an optimizer keeps of the table, by their torch names."""
        state = optimizer.state[self.weight]
        return {name: state[name] for name in ("exp_avg", "exp_avg_sq")}

    def written_bytes(self, rows: int) -> int:
        """Bytes to read and write `rows` rows of the table and of two fp32 moments once."""
        moments = 2 * torch.float32.itemsize * self.weight.shape[1]
        return 2 * rows * (self.weight[0].nbytes + moments)


def create_moments(table: ValueTable, optimizer: torch.optim.Optimizer) -> None:
    """Make MemoryAdamW create its state, by a step of one row, and map every page of it."""
    device = table.weight.device
    slots = torch.zeros(1, 1, dtype=torch.int64, device=device)
    table(slots, torch.ones(1, 1, device=device)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    state = optimizer.state[table.weight]
    state["exp_avg"].fill_(FIRST_MOMENT)
    state["exp_avg_sq"].fill_(SECOND_MOMENT)


def value_table(weight: Tensor) -> ValueTable:
    """Make a ValueTable of given rows, without drawing any."""
    with torch.device("meta"):
        table = ValueTable(*weight.shape, init_std=0.0, dtype=weight.dtype)
    table.weight = nn.Parameter(weight)
    return table


@dataclass(frozen=True)
class RowCheck:
    """Compares one step of an optimizer with AdamW in fp64 on a sample of rows.

    Args:
        state: The table and its optimizers.
        reads: What is read.
        d_out: [T, V], gradient of the reads.
    """

    state: SteppedTable
    reads: Reads
    d_out: Tensor

    def __call__(
        self, name: str, optimizer: torch.optim.Optimizer, run: Callable[[], object]
    ) -> float:
        """Run one step and check the rows and the moments it leaves behind.

        Args:
            name: For the error.
            optimizer: Whose moments to look at. AdamW changes rows without a gradient too.
            run: Steps the table once.

        Returns:
            The precision of the optimizer's arithmetic.

        Raises:
            WrongResultError: A row or a moment is wrong.
        """
        rows, gradient, magnitude = self._sample()
        weight = self.state.weight
        first, second = self.state.moments(optimizer).values()
        found = {"row": weight, "first moment": first, "second moment": second}
        before = [x[rows].double() for x in found.values()]
        run()
        expected = _adamw(optimizer, int(optimizer.state[weight]["step"]), gradient, *before)
        if type(optimizer) is not torch.optim.AdamW:
            touched = magnitude.sum(1, keepdim=True) > 0
            expected = [torch.where(touched, x, y) for x, y in zip(expected, before, strict=True)]
        # Torch's own compute in the type of the table.
        ours = isinstance(optimizer, MemoryAdamW)
        eps = torch.finfo(torch.float32 if ours else weight.dtype).eps
        # A sum may cancel: its error is relative to the magnitude of what was added up.
        limits = (
            torch.finfo(weight.dtype).eps * (expected[0].abs() + LR) + 400 * eps * LR,
            (magnitude + expected[1].abs()) * 16 * eps,
            ((magnitude + gradient.abs()).square() + expected[2]) * 16 * eps,
        )
        for label, exact, limit in zip(found, expected, limits, strict=True):
            check_close(f"{name}, {label},", found[label].detach()[rows], exact, limit)
        return eps

    def _sample(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows read and not read, their gradient in fp64, and that of absolute values."""
        slots = self.reads.slots
        read = slots.flatten()[sample_of(slots.numel(), slots.device)]
        rows = torch.cat([read, sample_of(self.reads.num_rows, slots.device)]).unique()
        tokens, reads = torch.isin(slots, rows).nonzero(as_tuple=True)
        index = torch.searchsorted(rows, slots[tokens, reads])
        vectors = self.d_out[tokens].double()
        factors = self.reads.weights[tokens, reads].detach().double()[:, None]
        zeros = vectors.new_zeros(len(rows), self.reads.width)
        gradient = zeros.index_add(0, index, factors * vectors)
        return rows, gradient, zeros.index_add(0, index, (factors * vectors).abs())


def _adamw(
    optimizer: torch.optim.Optimizer,
    step: int,
    gradient: Tensor,
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
) -> list[Tensor]:
    """AdamW in fp64 on given rows. SparseAdam adds eps before the bias correction, not after."""
    beta1, beta2 = BETAS
    exp_avg = beta1 * exp_avg + (1 - beta1) * gradient
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient.square()
    correction = (1 - beta2**step) ** 0.5
    root = exp_avg_sq.sqrt()
    sparse = isinstance(optimizer, torch.optim.SparseAdam)
    denominator = (root + EPS) / correction if sparse else root / correction + EPS
    weight = weight - LR / (1 - beta1**step) * exp_avg / denominator
    return [weight, exp_avg, exp_avg_sq]


def write_suite(request: Request) -> Suite:
    """Time `optimizer.step()` alone, the sorting of the reads included."""
    reads, state = _inputs(request)
    d_out = make_vectors(len(reads.slots), reads.width, request.device)
    check = RowCheck(state, reads, d_out)
    variants = []

    def add(name: str, optimizer: torch.optim.Optimizer, prepare: Callable[[], None]) -> None:
        def checked() -> None:
            prepare()
            check(name, optimizer, optimizer.step)

        variants.append(
            Variant(
                name=name,
                run=optimizer.step,
                check=checked,
                checked=f"{2 * SAMPLE} rows and their moments after a step",
                bytes=reads.factor_bytes + d_out.nbytes + state.written_bytes(reads.distinct),
                prepare=prepare,
                against=(WRITE_DENSE, WRITE_SPARSE) if name == WRITE else (),
                tokens=len(reads.slots),
                most_rounds=SPARSE_ROUNDS if name == WRITE_SPARSE else None,
            )
        )

    def read_again() -> None:
        state.weight.grad = None
        state.table(reads.slots, reads.weights).backward(d_out)

    add(WRITE, state.ours, read_again)
    for name, optimizer in ((WRITE_DENSE, state.dense), (WRITE_SPARSE, state.sparse)):
        # Made once, by torch: an optimizer does not change the gradient that it is given.
        state.weight.grad = None
        weights, vectors = (x.to(state.weight.dtype) for x in (reads.weights, d_out))
        bag(state.weight, reads.slots, weights, sparse=name == WRITE_SPARSE).backward(vectors)
        add(name, optimizer, partial(setattr, state.weight, "grad", state.weight.grad))
    state.weight.grad = None
    return Suite(tuple(variants), reads.facts)


def step_suite(request: Request) -> Suite:
    """Time a whole training step of a table: read, both gradients, optimizer."""
    reads, state = _inputs(request)
    on_gpu = request.device.type == "cuda" or request.as_on_gpu
    names = (STEP, STEP_DENSE, STEP_SPARSE, *(GPU_BACKWARDS if on_gpu else ()))
    return Suite(tuple(step_variants(names, state, reads)), reads.facts)


def _inputs(request: Request) -> tuple[Reads, SteppedTable]:
    reads, dtype = make_reads(request), DTYPES[request.sizes.dtype]
    return reads, SteppedTable(reads.num_rows, reads.width, dtype, request.device)


def step_variants(names: Sequence[str], state: SteppedTable, reads: Reads) -> list[Variant]:
    """Make the training steps of a table that are named.

    Args:
        names: Names of this module.
        state: Has the optimizers that they need.
        reads: What a step reads.
    """
    d_out = make_vectors(len(reads.slots), reads.width, reads.slots.device)
    check = RowCheck(state, reads, d_out)
    baselines = tuple(name for name in names if name != STEP)
    return [_step_variant(name, check, against=baselines if name == STEP else ()) for name in names]


def _step_variant(name: str, check: RowCheck, against: tuple[str, ...]) -> Variant:
    state, reads, d_out = check.state, check.reads, check.d_out
    # embedding_bag takes weights of the table's type alone.
    dtype = (state.weight if name in (STEP_DENSE, STEP_SPARSE) else reads.weights).dtype
    weights = reads.weights.to(dtype).detach().clone().requires_grad_()
    if name == STEP:
        optimizer = state.ours
    else:
        optimizer = state.sparse if name == STEP_SPARSE else state.dense
    backward: TableBackward | None = None
    if name in GPU_BACKWARDS:
        backward = getattr(import_module("benchmarks.gpu_baselines"), GPU_BACKWARDS[name])

    def leave_gradients() -> None:
        if name == STEP:
            state.table(reads.slots, weights).backward(d_out)
        elif backward is None:
            out = bag(state.weight, reads.slots, weights, sparse=name == STEP_SPARSE)
            out.backward(d_out.to(out.dtype))
        else:
            with torch.no_grad():
                gather_sum(state.weight, reads.slots, weights)
                weights.grad = gather_dot(state.weight, reads.slots, d_out).to(dtype)
                gradient = backward(reads.slots, weights.detach(), d_out, len(state.weight))
                state.weight.grad = gradient.to(state.weight.dtype)

    def run() -> None:
        weights.grad = None
        leave_gradients()
        optimizer.step()
        if name != STEP:
            # As optimizer.zero_grad() does. Keeping the buffer costs more: torch would add to it.
            state.weight.grad = None

    def checked() -> None:
        sample = sample_of(len(reads.slots), weights.device)
        rows = state.weight.detach()[reads.slots[sample]]
        exact, magnitude = (x[..., 0] for x in exact_product(rows, d_out[sample][..., None]))
        eps = check(name, optimizer, run)
        if weights.grad is None:
            raise AssertionError(f"{name} left no gradient of the weights")
        label = f"{name}, gradient of the weights,"
        check_sum(label, weights.grad[sample], exact, magnitude, terms=reads.width, sum_eps=eps)

    # Rows are read in the forward pass, and again for the gradient of the weights.
    row_reads = 2 * reads.slots.numel() * state.weight[0].nbytes
    factors = 2 * (reads.factor_bytes + d_out.nbytes)
    return Variant(
        name=name,
        run=run,
        check=checked,
        checked=f"{2 * SAMPLE} rows, their moments, the weights' gradient of {SAMPLE} tokens",
        bytes=row_reads + factors + state.written_bytes(reads.distinct),
        against=against,
        tokens=len(reads.slots),
        most_rounds=SPARSE_ROUNDS if name == STEP_SPARSE else None,
    )
