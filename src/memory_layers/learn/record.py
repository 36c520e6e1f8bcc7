"""What a patch has on record of what it was taught, and what of that makes way for what is new."""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from memory_layers.data.tokens import IGNORE
from memory_layers.layers.walk import memory_layers_of
from memory_layers.learn.rows import Plan
from memory_layers.learn.skeleton import rows_at
from memory_layers.learn.sources import Example, LearnData
from memory_layers.models import Fact, Teaching, patch_of, revert_patch


def slots_read(model: PreTrainedModel, examples: Sequence[Example]) -> list[tuple[Tensor, Tensor]]:
    """Return the slots that examples read where they ask, and those that they read elsewhere.

    A running text asks everywhere. What is read behind all that is learned does not count.

    Args:
        model: With memory that stores written rows.
        examples: Of any lengths.
    """
    table: Any = memory_layers_of(model)[0].values
    slots = table.slots.cpu()
    texts = [torch.from_numpy(example.ids).long() for example in examples]
    found = []
    for example, rows in zip(examples, rows_at(model, texts), strict=True):
        places = torch.arange(len(rows))
        before = (rows >= 0) & (places < example.spans[-1][1] - 1)
        asks = torch.from_numpy(example.labels() == IGNORE) | (example.form == "text")
        found.append((slots[rows[before & asks]], slots[rows[before & ~asks]]))
    return found


def facts_of(model: PreTrainedModel, data: LearnData, plan: Plan) -> list[Fact]:
    """Return what was taught, with the slots that it hangs on.

    Args:
        model: With the rows of the plan.
        data: What was taught.
        plan: How.
    """
    asks, says = defaultdict(list), defaultdict(list)
    read = slots_read(model, data.examples)
    for example, (asking, saying) in zip(data.examples, read, strict=True):
        asks[example.group].append(asking)
        says[example.group].append(saying)
    found = []
    for number, planned in sorted(plan.of_group.items()):
        group = data.groups[number]
        # Also rows that were planned for others: without them it would not be what it is.
        rows = torch.cat([plan.slots[list(planned)], *asks[number]]).unique()
        reads = torch.cat(says[number]).unique()
        found.append(Fact(group.name, group.answer, rows, data.asked[number], reads))
    return found


def make_way(
    model: PreTrainedModel, data: LearnData, answered: set[int]
) -> tuple[list[Fact], list[Fact], tuple[str, ...]]:
    """Take out what was taught before of what the data teaches and the model does not answer.

    Its rows would be read in the place of new ones. Rows that others hang on too stay, if all
    that is asked reads one that is taken out; otherwise the others go with them.

    Args:
        model: With a memory that was taught.
        data: What is going to be taught.
        answered: Groups of it that the model answers. Those that go are taken out of them.

    Returns:
        What was taught with another answer; what else goes and is not taught again; and what stays
        and may be answered otherwise.
    """
    groups_of = _known_again(data)
    read: dict[int, list[Tensor]] = defaultdict(list)
    for example, (asking, _) in zip(data.examples, slots_read(model, data.examples), strict=True):
        read[example.group].append(asking)
    corrected: list[Fact] = []
    gone: list[Fact] = []
    readers: list[str] = []
    for teaching in patch_of(model).teachings:
        again = {n for n, fact in enumerate(teaching.facts) if groups_of(fact) - answered}
        if not again:
            continue
        for fact in (teaching.facts[number] for number in sorted(again)):
            answers = {data.groups[n].answer for n in groups_of(fact)}
            corrected += [] if fact.answer in answers else [fact]
        beside = _beside(
            teaching,
            again,
            lambda fact: [slots for group in groups_of(fact) - answered for slots in read[group]],
        )
        gone += [teaching.facts[number] for number in sorted(beside)]
        readers += revert_patch(model, teaching.id, again | beside).readers
    model.requires_grad_(False)
    answered.difference_update(*map(groups_of, gone))
    left = [fact for fact in gone if not groups_of(fact)]
    names = {fact.prompt for fact in (*corrected, *gone)}
    return corrected, left, tuple(name for name in dict.fromkeys(readers) if name not in names)


def _known_again(data: LearnData) -> Callable[[Fact], set[int]]:
    """Return what tells which groups of data teach what was taught before.

    Facts are known again by relation and subject, and all else by any of its prompts.
    """
    groups: dict[str, set[int]] = defaultdict(set)
    # What is cut before its answer is not taught.
    for number in {example.group for example in data.examples}:
        group = data.groups[number]
        for key in (*data.asked[number], *([group.name] if group.subject else [])):
            groups[key].add(number)
    return lambda fact: set().union(*(groups.get(key, ()) for key in (fact.prompt, *fact.asked)))


def _beside(
    teaching: Teaching, again: Collection[int], asking: Callable[[Fact], Sequence[Tensor]]
) -> set[int]:
    """Return the numbers of facts that hang on rows that are needed for others."""
    stay = {n: fact for n, fact in enumerate(teaching.facts) if n not in again}
    shared = torch.cat([torch.empty(0, dtype=torch.int64), *(f.rows for f in stay.values())])
    needed = [torch.empty(0, dtype=torch.int64)]
    for fact in (teaching.facts[number] for number in again):
        own = fact.rows[~torch.isin(fact.rows, shared)]
        if not len(own) or not all(torch.isin(of, own).any() for of in asking(fact) if len(of)):
            needed.append(fact.rows)
    return {n for n, fact in stay.items() if torch.isin(fact.rows, torch.cat(needed)).any()}
