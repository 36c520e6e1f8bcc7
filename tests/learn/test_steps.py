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
    steps = RowSteps(table, torch.tensor([1, 2]), torch.tensor([0, 1]), LR)
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


def test_rows_of_one_name_learn_together_what_is_read_at_one_of_them(table: WrittenTable) -> None:
    steps = RowSteps(table, torch.tensor([0, 1, 2]), torch.tensor([7, 3, 7]), LR)
    before = table.weight.detach().clone()
    read(table, [0]).backward()
    steps.step()
    moved = (before - table.weight.detach())[:, QUERY + 1 :].mean(1)
    torch.testing.assert_close(moved, LR * torch.tensor([1 + COMMON, COMMON, 1 + COMMON]))


def test_silent_tokens_move_nothing(table: WrittenTable) -> None:
    steps = RowSteps(table, torch.tensor([0, 1, 2]), torch.arange(3), LR)
    read(table, [0, 1, 2]).backward()
    steps.step()
    before = table.weight.detach().clone()
    steps.zero_grad()
    # The nearest row is read with weight 0 where it is too far away to speak.
    (table(torch.tensor([[0], [1]]), torch.tensor([[1.0], [0.0]]))).sum().backward()
    steps.step()
    moved = (before - table.weight.detach())[:, QUERY + 1 :].mean(1)
    torch.testing.assert_close(moved[1], moved[2])
    assert moved[0] > moved[1] + 0.5 * LR


def test_what_was_saved_goes_on_as_if_it_had_not_ended(table: WrittenTable) -> None:
    def update(steps: RowSteps, rows: list[int]) -> torch.Tensor:
        steps.zero_grad()
        read(table, rows).backward()
        steps.step()
        return table.weight.detach().clone()

    rows = torch.tensor([1, 2])
    whole = RowSteps(table, rows, torch.tensor([0, 1]), LR)
    update(whole, [1])
    saved = whole.tensors()
    expected = update(whole, [1, 2, 2])
    again = RowSteps(table, rows, torch.tensor([0, 1]), LR)
    again.restore(saved)
    assert torch.equal(update(again, [1, 2, 2]), expected)
