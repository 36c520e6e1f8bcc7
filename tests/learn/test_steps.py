"""How rows of a lesson move, against arithmetic by hand."""

import pytest
import torch

from memory_layers.layers import WrittenTable
from memory_layers.learn.steps import COMMON, RowSteps

LR, QUERY, VALUES = 0.1, 4, 6


@pytest.fixture
def table() -> WrittenTable:
    table = WrittenTable(100, VALUES, QUERY)
    generator = torch.Generator().manual_seed(0)
    table.write(torch.arange(3), torch.randn(3, QUERY + 1 + VALUES, generator=generator))
    return table


def read(table: WrittenTable, rows: list[int]) -> torch.Tensor:
    """The sum of rows: the gradient of each of their values is 1."""
    return table(torch.tensor(rows)[:, None], torch.ones(len(rows), 1)).sum()


def test_rows_of_earlier_lessons_stay_and_those_of_this_one_move(table: WrittenTable) -> None:
    steps = RowSteps(table, torch.tensor([1, 2]), LR)
    before = table.weight.detach().clone()
    read(table, [0, 1]).backward()
    steps.step()
    moved = (before - table.weight.detach())[:, QUERY + 1 :]
    # The first step of Adam is its rate: that of what is common, and for row 1 its own on top.
    expected = torch.tensor([0.0, LR + COMMON * LR, COMMON * LR])[:, None].expand(-1, VALUES)
    torch.testing.assert_close(moved, expected)
    assert torch.equal(table.weight[0], before[0])
    # What a row is known by is no value.
    assert torch.equal(table.weight[:, : QUERY + 1], before[:, : QUERY + 1])


def test_what_was_saved_goes_on_as_if_it_had_not_ended(table: WrittenTable) -> None:
    def update(steps: RowSteps, rows: list[int]) -> torch.Tensor:
        steps.zero_grad()
        read(table, rows).backward()
        steps.step()
        return table.weight.detach().clone()

    rows = torch.tensor([1, 2])
    whole = RowSteps(table, rows, LR)
    update(whole, [1])
    saved = whole.tensors()
    expected = update(whole, [1, 2, 2])
    again = RowSteps(table, rows, LR)
    again.restore(saved)
    assert torch.equal(update(again, [1, 2, 2]), expected)
