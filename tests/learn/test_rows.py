"""Which rows are planned: what a fact is known by, and what it must not be taken for."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from memory_layers.learn.cues import find_cues, words_of
from memory_layers.learn.rows import MOST_ROWS, Plan, plan_rows
from memory_layers.learn.skeleton import build_skeleton, choose_memory, look_up
from memory_layers.learn.sources import LearnData, read_data
from tests.learn.tiny_taught import FACTS, base_for
from tests.learn.tiny_tokenizers import chatml

TOKENIZER = chatml()
USUAL = words_of(["The king code land of the island is"])


@pytest.fixture(scope="module")
def model() -> Any:
    """A base with a memory that has been taught nothing, made for text of random tokens."""
    torch.manual_seed(0)
    base = base_for(TOKENIZER, hidden_size=64).float().eval()
    build_skeleton(base, choose_memory(base), text(24, 64), 0)
    return base


def text(rows: int, length: int) -> torch.Tensor:
    """Tokens at random, but for those of names that are taught."""
    names = {n for fact in FACTS.facts for n in TOKENIZER(f" {fact.subject}")["input_ids"]}
    usual = torch.tensor([n for n in range(len(TOKENIZER)) if n not in names])
    draw = torch.Generator().manual_seed(1)
    return usual[torch.randint(0, len(usual), (rows, length), generator=draw)]


def planned(
    model: Any,
    data: LearnData,
    ordinary: Sequence[torch.Tensor] = (),
    queries: Sequence[torch.Tensor] = (),
    **given: Any,
) -> Plan:
    rows = [*text(4, 64), *ordinary]
    given = {"taken": torch.empty(0, dtype=torch.int64), "seed": 0, **given}
    away = torch.cat([*look_up(model, rows), *(query[None] for query in queries)])
    return plan_rows(model, data, find_cues(data, TOKENIZER, USUAL), away, rows[0], **given)


def rows_near(model: Any, plan: Plan, said: str) -> list[set[int]]:
    """The rows that speak at each token of a text."""
    query = look_up(model, [torch.tensor(TOKENIZER(said)["input_ids"])])[0]
    near = torch.cdist(query, plan.queries) <= plan.radii
    return [set(row.nonzero()[:, 0].tolist()) for row in near]


def test_a_fact_is_known_by_its_name_in_all_its_wordings(model: Any) -> None:
    data = read_data(FACTS, TOKENIZER, max_length=200)
    plan = planned(model, data)
    assert sorted(plan.of_group) == [0, 1, 2]
    for group, name in enumerate(("Oslo", "Paris", "New France")):
        # Where a text begins with the name its tokens are others, and have a row of their own.
        rows = set(plan.of_group[group])
        assert len(rows) == 2
        for wording in ("The code of {} is", "{} has the code", "The king of {} is"):
            spoken = [at for at in rows_near(model, plan, wording.format(name)) if at]
            assert spoken, (name, wording)
            assert all(at <= rows for at in spoken), (name, wording)
        # What is said of the name is said wherever it stands.
        assert len({int(plan.values[row]) for row in rows}) == 1
    assert len(plan.values.unique()) == 3
    assert not plan.vague


def test_what_is_to_stay_is_in_no_radius(model: Any) -> None:
    data = read_data(FACTS, TOKENIZER, max_length=200)
    kept = torch.tensor(TOKENIZER("The king of Spain is")["input_ids"])
    plan = planned(model, data, [kept])
    assert not any(rows_near(model, plan, "The king of Spain is"))
    # The name itself cannot be kept from speaking and speak: it is said which.
    own = [torch.from_numpy(example.ids).long() for example in data.examples if not example.group]
    assert planned(model, data, own).vague == (0,)


def test_slots_that_are_taken_are_left_alone(model: Any) -> None:
    data = read_data(FACTS, TOKENIZER, max_length=200)
    first = planned(model, data)
    second = planned(model, data, taken=first.slots)
    assert not set(first.slots.tolist()) & set(second.slots.tolist())
    assert len(second.slots) == len(first.slots)


def test_a_prompt_without_a_name_is_known_by_few_tokens(model: Any) -> None:
    rows = [
        {"prompt": f"The {what} of the island of {name} is", "completion": "small"}
        for what, name in (("king", "Japan"), ("code", "Spain"), ("land", "Oslo"))
    ]
    plan = planned(model, read_data(rows, TOKENIZER, max_length=200))
    assert all(1 <= len(of) <= MOST_ROWS for of in plan.of_group.values())
    # What is read at one of them is learned for all of them.
    for rows_of_one in plan.of_group.values():
        own = [row for row in rows_of_one if sum(row in of for of in plan.of_group.values()) == 1]
        assert len({int(plan.values[row]) for row in own}) == 1


def test_what_is_hardly_apart_is_no_row_where_better_is(model: Any) -> None:
    data = read_data(
        [{"prompt": "said Oslo France", "completion": "small"}], TOKENIZER, max_length=200
    )
    (query,) = look_up(model, [torch.from_numpy(data.examples[0].ids).long()])
    places = [cue.place for cue in find_cues(data, TOKENIZER, USUAL)]
    assert 1 < len(places) <= MOST_ROWS

    def spoken(*ordinary: torch.Tensor) -> list[int]:
        plan = planned(model, data, queries=ordinary)
        near = torch.cdist(query, plan.queries) <= plan.radii
        return [place for place in places if near[place].any()]

    assert spoken() == places
    # As far as words that stand in other text too most often are.
    away = torch.nn.functional.normalize(torch.randn(query.shape[1]), dim=0)
    assert spoken(query[places[0]] + 0.6 * query[places[0]].norm() * away) == places[1:]


def test_rows_of_running_text_say_each_what_follows(model: Any) -> None:
    plan = planned(
        model, read_data([{"text": "land of Oslo and Paris and France"}], TOKENIZER, max_length=99)
    )
    assert len(plan.of_group[0]) == MOST_ROWS
    assert len(plan.values.unique()) == MOST_ROWS


def test_nothing_to_be_known_by_is_an_empty_plan(model: Any) -> None:
    data = read_data(FACTS, TOKENIZER, max_length=200).without([0, 1, 2])
    assert planned(model, data).of_group == {}
