"""A table and its AdamW moments, shared by all optimizers that are timed, and its exact step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.checks import FP32_EPS, check_close, sample_of
from benchmarks.inputs import Reads, make_table
from memory_layers.layers import ValueTable
from memory_layers.optim import MemoryAdamW

LR = 1e-3
BETAS = (0.9, 0.95)
EPS = 1e-8
# Moments at the start, about those of the gradients timed here: steps are then of the usual size.
FIRST_MOMENT = 1e-4
SECOND_MOMENT = 1e-6
# SparseAdam takes seconds a step and leaves gigabytes for the kernel to clear behind it.
SPARSE_ROUNDS = 3


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
            self.ours = MemoryAdamW(self.table, lr=LR, betas=BETAS, eps=EPS)
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
        self,
        name: str,
        optimizer: torch.optim.Optimizer,
        run: Callable[[], object],
        *,
        lazy: bool,
        arithmetic_eps: float = FP32_EPS,
    ) -> None:
        """Run one step and check the rows and the moments it leaves behind.

        Args:
            name: For the error.
            optimizer: Whose moments to look at.
            run: Steps the table once.
            lazy: Rows without a gradient must not change.
            arithmetic_eps: Precision of the optimizer's arithmetic.

        Raises:
            WrongResultError: A row or a moment is wrong.
        """
        rows, gradient, magnitude = self._sample()
        weight = self.state.weight
        moments = self.state.moments(optimizer)
        before = [x[rows].double() for x in (weight, moments["exp_avg"], moments["exp_avg_sq"])]
        run()
        step = int(optimizer.state[weight]["step"])
        sparse = isinstance(optimizer, torch.optim.SparseAdam)
        expected = _adamw(*before, gradient, step, sparse=sparse)
        if lazy:
            touched = magnitude.sum(1, keepdim=True) > 0
            expected = [torch.where(touched, x, y) for x, y in zip(expected, before, strict=True)]
        # A sum may cancel: its error is relative to the magnitude of what was added up.
        sums = (magnitude + expected[1].abs()) * 16 * arithmetic_eps
        squares = (magnitude + gradient.abs()).square() + expected[2]
        storage_eps = torch.finfo(weight.dtype).eps
        limits = (
            storage_eps * (expected[0].abs() + LR) + 400 * arithmetic_eps * LR,
            sums,
            16 * arithmetic_eps * squares,
        )
        found = (weight, moments["exp_avg"], moments["exp_avg_sq"])
        labels = ("row", "first moment", "second moment")
        for label, actual, exact, limit in zip(labels, found, expected, limits, strict=True):
            check_close(f"{name}, {label},", actual.detach()[rows], exact, limit)

    def _sample(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows read and not read, their gradient in fp64, and that of absolute values."""
        slots = self.reads.slots
        read = slots.flatten()[sample_of(slots.numel(), slots.device)]
        rows = torch.cat([read, sample_of(self.reads.num_rows, slots.device)]).unique()
        tokens, reads = torch.isin(slots, rows).nonzero(as_tuple=True)
        index = torch.searchsorted(rows, slots[tokens, reads])
        vectors = self.d_out[tokens].double()
        factors = self.reads.weights[tokens, reads].detach().double()[:, None]
        gradient = vectors.new_zeros(len(rows), self.reads.width)
        magnitude = torch.zeros_like(gradient)
        gradient.index_add_(0, index, factors * vectors)
        magnitude.index_add_(0, index, factors.abs() * vectors.abs())
        return rows, gradient, magnitude


def _adamw(
    weight: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    gradient: Tensor,
    step: int,
    *,
    sparse: bool,
) -> list[Tensor]:
    """AdamW in fp64 on given rows. SparseAdam adds eps before the bias correction, not after."""
    beta1, beta2 = BETAS
    exp_avg = beta1 * exp_avg + (1 - beta1) * gradient
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient.square()
    correction = (1 - beta2**step) ** 0.5
    root = exp_avg_sq.sqrt()
    denominator = (root + EPS) / correction if sparse else root / correction + EPS
    weight = weight - LR / (1 - beta1**step) * exp_avg / denominator
    return [weight, exp_avg, exp_avg_sq]
