"""Inputs: which slots are read, with which weights, from what table."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.request import Request
from memory_layers.ops.huge_pages import advise_huge_pages

ZIPF_EXPONENT = 1.0
SEED = 0
# Rows of random numbers, repeated to fill a table: drawing 2**30 numbers takes longer than a run.
RANDOM_ROWS = 2**12
VALUE_STD = 0.02


@dataclass(frozen=True)
class Reads:
    """Which rows the tokens of a step read.

    Attributes:
        slots: [T, J] int64.
        weights: [T, J] fp32.
        num_rows: N.
        width: V.
        distribution: Of the slots, for the result file.
    """

    slots: Tensor
    weights: Tensor
    num_rows: int
    width: int
    distribution: dict[str, object]

    @property
    def distinct(self) -> int:
        """R."""
        return int(self.slots.unique().numel())

    @property
    def factor_bytes(self) -> int:
        """Bytes of slots and weights."""
        return self.slots.nbytes + self.weights.nbytes


def make_reads(request: Request) -> Reads:
    """Draw the reads that a request asks for, or record them from its model."""
    sizes = request.sizes
    if request.slots == "recorded" and request.model is not None:
        from benchmarks.recorded import record_reads

        return record_reads(request.model, sizes.tokens, request.device)
    generator = torch.Generator().manual_seed(SEED)
    shape = (sizes.tokens, sizes.reads)
    if request.slots == "zipf":
        slots = _zipf(sizes.slots, shape, generator)
        distribution: dict[str, object] = {
            "name": "zipf",
            "exponent": ZIPF_EXPONENT,
            "permuted": True,
            "seed": SEED,
        }
    else:
        slots = torch.randint(sizes.slots, shape, generator=generator)
        distribution = {"name": "uniform", "seed": SEED}
    # As a layer weighs them: a softmax over the K reads of a head.
    scores = torch.randn(sizes.tokens, sizes.heads, sizes.top_k, generator=generator)
    weights = scores.softmax(dim=-1).flatten(1)
    return Reads(
        slots.to(request.device),
        weights.to(request.device),
        sizes.slots,
        sizes.value_dim,
        distribution,
    )


def _zipf(num_rows: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw ranks with probability ~ rank ** -exponent, and scatter the ranks over the table."""
    share = torch.arange(1, num_rows + 1, dtype=torch.float64).pow(-ZIPF_EXPONENT).cumsum(0)
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64) * share[-1]
    ranks = torch.searchsorted(share, drawn).clamp(max=num_rows - 1)
    return torch.randperm(num_rows, generator=generator)[ranks]


def make_table(num_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Fill an [N, V] table with normal numbers, in huge pages as ValueTable's."""
    generator = torch.Generator().manual_seed(SEED)
    block = torch.randn(min(num_rows, RANDOM_ROWS), width, generator=generator) * VALUE_STD
    table = torch.empty(num_rows, width, dtype=dtype, device=device)
    advise_huge_pages(table)
    block = block.to(device=device, dtype=dtype)
    for low in range(0, num_rows, len(block)):
        table[low : low + len(block)] = block[: num_rows - low]
    return table


def make_vectors(tokens: int, width: int, device: torch.device) -> Tensor:
    """Draw one fp32 vector of length about 1 for each token: x, or the gradient of a read."""
    generator = torch.Generator().manual_seed(SEED + 1)
    return (torch.randn(tokens, width, generator=generator) / math.sqrt(width)).to(device)
