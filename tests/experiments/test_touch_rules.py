"""The harness of experiments/08-touch: what rules move rows by, and which runs are taken."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from memory_layers import MemoryAdamW
from memory_layers.layers import ValueTable

FOLDER = Path(__file__).parents[2] / "experiments" / "08-touch"
NAMES = ("rules", "theory", "run", "scores", "tables")


@pytest.fixture
def touch(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import run

    yield run
    for name in NAMES:
        sys.modules.pop(name, None)


def moved(make: Callable[[ValueTable], torch.optim.Optimizer], idle: int) -> Tensor:
    """Step a table for a while, and let its rows rest."""
    torch.manual_seed(0)
    table = ValueTable(40, 8)
    optimizer, before = make(table), table.weight.detach().clone()
    for step in range(idle + 30 + 120):
        active = idle <= step < idle + 30
        slots = torch.randint(1, 40, (3, 2)) if active else torch.zeros(1, 1, dtype=torch.int64)
        gradients = torch.randn(3, 8) if active else torch.ones(1, 8)
        (table(slots, torch.ones(slots.shape)) * gradients).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return (table.weight.detach() - before)[1:]


def by_rule(touch: Any, rule: str, idle: int) -> Tensor:
    return moved(
        lambda table: touch.TouchAdamW(
            table.parameters(), value_lr=1e-2, rule=rule, steps=idle + 150
        ),
        idle,
    )


@pytest.mark.parametrize("state", ["full", "row"])
def test_the_rules_of_the_library_give_its_rows(touch: Any, state: Any) -> None:
    own = moved(lambda table: MemoryAdamW(table.parameters(), value_lr=1e-2, value_state=state), 0)
    assert torch.equal(by_rule(touch, state, 0), own)


def test_rows_that_are_moved_ahead_are_those_of_the_library(touch: Any) -> None:
    # Late in training: in the first steps the library has the bias of those to come, too.
    own = moved(lambda table: MemoryAdamW(table.parameters(), value_lr=1e-2), 300)
    torch.testing.assert_close(by_rule(touch, "full_ahead", 300), own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["dense", "full_late", "full_ahead"])
def test_momentum_between_touches_is_that_of_dense_adamw(touch: Any, rule: str) -> None:
    # Late in training: the series leaves out what the bias does in between.
    dense = moved(
        lambda table: torch.optim.AdamW(table.parameters(), 1e-2, (0.9, 0.95), weight_decay=0.0),
        150,
    )
    torch.testing.assert_close(by_rule(touch, rule, 150), dense, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rule", ["full_touches", "row_touches"])
def test_every_touch_is_worth_one_rate_with_the_bias_of_touches(touch: Any, rule: str) -> None:
    import theory

    path = theory.trajectory(rule, [50, 60, 90], 100)
    assert [path[48], path[49], path[59], path[89]] == pytest.approx([0, 1, 2, 3], abs=1e-3)


@pytest.mark.parametrize(("peak", "tried"), [(0, 3), (3, 6), (-4, 7)])
def test_a_sweep_ends_with_its_best_rate_inside(touch: Any, peak: int, tried: int) -> None:
    runs: list[dict[str, Any]] = []
    while (job := touch.following(runs)) is not None:
        arm, doublings, seed = job
        recall = dict.fromkeys(("statement", "question_heldout"), 1 - abs(doublings - peak) / 10)
        runs.append({"arm": arm, "doublings": doublings, "seed": seed, "recall": recall})
    for arm in touch.ARMS:
        sweep = [run["doublings"] for run in runs if run["arm"] == arm and run["seed"] == 0]
        assert min(sweep) < peak < max(sweep)
        assert len(sweep) == tried
        seeds = [run["seed"] for run in runs if run["arm"] == arm and run["seed"]]
        assert seeds == [1, 2, 3, *(touch.MORE_SEEDS if arm in touch.CLOSE else ())]


def test_rounded_scores_find_the_best_of_rounded_scores(touch: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(16, 2, 2, 8, generator=generator).requires_grad_()
    keys = torch.randn(2, 2, 24, 8, generator=generator).requires_grad_()
    scores, slots = touch.Ties()(query, keys, 6)
    halves = torch.einsum("thpc,hpmc->thpm", query, keys).bfloat16()
    sums = (halves[:, :, 0, :, None] + halves[:, :, 1, None, :]).flatten(2)
    assert torch.equal(scores, sums.topk(6).values.float())
    assert torch.equal(sums.gather(-1, slots).float(), scores)
    scores.sum().backward()
    assert query.grad is not None
    assert keys.grad is not None
    assert touch.Ties()(query.to("meta"), keys.to("meta"), 6)[0].shape == scores.shape
