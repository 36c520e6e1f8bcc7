"""Replicas of a table: whatever way they exchange gradients, their steps are those of one table."""

from functools import cache
from typing import Any

import pytest
import torch
from ranks import run_ranks
from table_cases import OWN_ROWS, Holder, gradient_of, replicated_steps, step_read

from memory_layers.optim import MemoryAdamW
from memory_layers.parallel.replicas import exchange_bytes

VALUE_DIM = 5
# Few rows: their sums are less than the factors. Many: the other way round.
SUMS, FACTORS = 20, 4000


@cache
def ranks_of(slots: int, replicas: int, memory: int) -> list[dict[str, Any]]:
    return run_ranks(replicas * memory, replicated_steps, slots, replicas, memory)


@cache
def alone(slots: int, readers: int) -> tuple[list[torch.Tensor], list[float]]:
    """Take the same steps with one whole table that reads what all ranks read.

    Returns:
        The rows after each step, and the norms.
    """
    holder = Holder(VALUE_DIM, slots)
    optimizer = MemoryAdamW(holder, lr=0.1, eps=1e-3, value_weight_decay=0.1)
    rows, norms = [], []
    for step in range(2):
        for reader in range(readers):
            step_read(holder.table, VALUE_DIM, reader, step)
        norms.append(float(optimizer.clip_grad_norm_(None, 0.5)[1]))
        optimizer.step()
        optimizer.zero_grad()
        rows.append(holder.table.weight.detach().clone())
    return rows, norms


EVERY = pytest.mark.parametrize("slots", [SUMS, FACTORS], ids=["sums", "factors"])
GROUPS = pytest.mark.parametrize(("replicas", "memory"), [(2, 1), (2, 2)])


@EVERY
@GROUPS
def test_steps_are_those_of_one_table_that_reads_all(slots, replicas, memory):
    (_, weight), norms = alone(slots, replicas * memory)
    assert min(norms) > 0.5, "clipping has nothing to do"
    for rank in ranks_of(slots, replicas, memory):
        torch.testing.assert_close(rank["weight"], weight[:, rank["columns"]], rtol=1e-5, atol=1e-5)
        assert rank["norms"] == pytest.approx(norms, rel=1e-5)


@EVERY
@GROUPS
def test_replicas_are_equal_to_the_last_bit(slots, replicas, memory):
    ranks = ranks_of(slots, replicas, memory)
    for rank, other in zip(ranks[:memory], ranks[memory:], strict=True):
        assert torch.equal(rank["weight"], other["weight"])


@EVERY
@GROUPS
def test_the_smaller_exchange_is_taken(slots, replicas, memory):
    for rank in ranks_of(slots, replicas, memory):
        # Sums arrive as one read. Factors as they were: two halves of each replica.
        assert rank["reads"] == [1 if slots == SUMS else 2 * replicas] * 2


@EVERY
def test_a_read_after_the_exchange_is_refused(slots):
    for rank in ranks_of(slots, 2, 1):
        assert "a backward pass after the gradient was added up over replicas" in rank["late"]


@EVERY
def test_a_row_that_is_read_with_weight_zero_is_touched(slots):
    # In step 1 no replica has a gradient for these rows, and one of them did not even read them.
    (before, after), _ = alone(slots, 2)
    for rank in ranks_of(slots, 2, 1):
        for row in (OWN_ROWS, OWN_ROWS + 1):
            assert (after[row] - before[row]).abs().max() > 0.01
            torch.testing.assert_close(rank["weight"][row], after[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "factors"),
    [
        # 10 * 3 slots and weights and 10 * 5 vectors; 4 * 2 and 4 * 5: 50 and 100 numbers
        # beside 38 slots of 4 bytes.
        (torch.float32, 4 * 38 + 4 * (38 + 70)),
        (torch.bfloat16, 4 * 38 + 2 * (38 + 70)),
    ],
)
def test_bytes_of_both_ways_by_hand(dtype, factors):
    gradient = gradient_of([(10, 3), (4, 2)], 5, dtype)
    # A ring sends (R - 1) / R of [100, 5] fp32 and 100 bytes twice.
    assert exchange_bytes(gradient, 100, 4) == (3 * factors, 2 * 3 / 4 * (100 * 21))
    assert exchange_bytes(gradient, 100, 2) == (factors, 2100)
