"""A table sharded by width, without FSDP: reads, gradients, and what a rank holds."""

from functools import cache
from typing import Any

import pytest
import torch
from ranks import run_ranks
from table_cases import (
    READS,
    SLOTS,
    TOKENS,
    Holder,
    batch,
    dense,
    dot,
    mesh_of_one_axis,
    read,
    sharded_reads,
    unequal_tokens,
    weights_in_bfloat16,
)

RANKS = 4
# Columns of each rank: even, uneven, and with ranks that have none.
WIDTHS = {8: [2, 2, 2, 2], 30: [8, 8, 8, 6], 5: [2, 2, 1, 0], 1: [1, 0, 0, 0]}
EVERY = pytest.mark.parametrize("value_dim", WIDTHS)


@cache
def sharded() -> list[list[dict[str, Any]]]:
    """What each rank has, for each width."""
    return run_ranks(RANKS, sharded_reads, list(WIDTHS))


def results(value_dim: int) -> list[dict[str, Any]]:
    index = list(WIDTHS).index(value_dim)
    return [rank[index] for rank in sharded()]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@EVERY
def test_no_rank_holds_more_than_its_columns(value_dim):
    first = 0
    for result, width in zip(results(value_dim), WIDTHS[value_dim], strict=True):
        assert result["shape"] == (SLOTS, width)
        assert result["columns"] == (first, value_dim)
        first += width


@EVERY
def test_reads_and_the_gradient_of_weights_are_those_of_the_whole_table(value_dim):
    for rank, result in enumerate(results(value_dim)):
        out, d_weights = read(Holder(value_dim).table, value_dim, rank)
        assert result["out"].shape == (TOKENS, value_dim)
        close(result["out"], out)
        close(result["d_weights"], d_weights)


@EVERY
def test_pending_reads_are_the_columns_of_the_gradient_of_all_tokens(value_dim):
    table = Holder(value_dim).table
    for rank in range(RANKS):
        read(table, value_dim, rank)
    whole = dense(table.row_gradient())
    parts = results(value_dim)
    close(torch.cat([part["gradient"] for part in parts], 1), whole)


@EVERY
def test_the_gradient_stays_factored(value_dim):
    for result, width in zip(results(value_dim), WIDTHS[value_dim], strict=True):
        # Two halves of the tokens of the group, one after the other.
        half = RANKS * TOKENS // 2
        assert result["vectors"] == [(half, width)] * 2
        assert result["reads"] == [(half, READS)] * 2
        assert result["kind"] == "FactoredGradient"


@EVERY
def test_without_gradients_each_rank_may_bring_its_own_number_of_tokens(value_dim):
    for rank, (result, tokens) in enumerate(zip(results(value_dim), [5, 0, 2, 3], strict=True)):
        slots, weights, _ = batch(value_dim, rank, tokens)
        close(result["uneven"], Holder(value_dim).table(slots, weights))


@EVERY
def test_dot_products_and_the_gradient_of_tokens_are_those_of_the_whole_table(value_dim):
    for rank, result in enumerate(results(value_dim)):
        dots, d_x = dot(Holder(value_dim).table, value_dim, rank)
        assert result["dots"].shape == (TOKENS, READS)
        close(result["dots"], dots)
        close(result["d_x"], d_x)


@EVERY
def test_pending_dot_products_are_the_columns_of_the_gradient_of_all_tokens(value_dim):
    table = Holder(value_dim).table
    for rank in range(RANKS):
        dot(table, value_dim, rank)
    parts = results(value_dim)
    whole = dense(table.row_gradient())
    close(torch.cat([part["dot_gradient"] for part in parts], 1), whole)
    for part, width in zip(parts, WIDTHS[value_dim], strict=True):
        assert part["dot_vectors"] == [(RANKS * TOKENS // 2, width)] * 2


@EVERY
def test_dot_products_without_gradients_take_any_number_of_tokens(value_dim):
    for rank, (result, tokens) in enumerate(zip(results(value_dim), [5, 0, 2, 3], strict=True)):
        slots, _, x = batch(value_dim, rank, tokens)
        close(result["uneven_dots"], Holder(value_dim).table.dot(slots, x))


def test_norm_over_a_batch_is_refused():
    said = sharded()[0][0]["batch_norm_refused"]
    assert said.startswith('query_norm "batch" works on one process')
    assert "hint: " in said


def test_a_table_with_sparse_gradients_is_refused():
    assert "leaves no sparse gradient. hint: " in sharded()[0][0]["refused"]


def test_weights_can_travel_in_bfloat16():
    for rank, result in enumerate(run_ranks(2, weights_in_bfloat16)):
        out, d_weights = read(Holder(8).table, 8, rank)
        # bf16 has 8 bits; rows and weights are of size 1, and three are added.
        torch.testing.assert_close(result["out"], out, rtol=0, atol=3 * 3 * 2**-8)
        assert not torch.equal(result["out"], out)
        assert result["d_weights"].dtype == torch.float32
        close(result["d_weights"], d_weights)


def test_a_mesh_of_one_axis_is_one_memory_group():
    for rank, (words, out, rows) in enumerate(run_ranks(2, mesh_of_one_axis)):
        table = Holder(4).table
        first = 2 * rank
        assert f"value_dim=4, columns={first}:{first + 2}, memory_group=2" in words
        close(out, read(table, 4, rank)[0])
        assert torch.equal(rows, table.weight)


def test_unequal_tokens_in_training_are_refused() -> None:
    with pytest.raises(AssertionError, match="this one has 6, another 7"):
        run_ranks(2, unequal_tokens)
