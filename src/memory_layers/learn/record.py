"""What a patch has on record of what it was taught, and what of that makes way for what is new."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from memory_layers.data.tokens import IGNORE
from memory_layers.learn.rows import Plan
from memory_layers.learn.skeleton import slots_at
from memory_layers.learn.sources import Example, LearnData
from memory_layers.models import Fact, Teaching, patch_of, revert_patch


def slots_read(model: PreTrainedModel, examples: Sequence[Example]) -> list[tuple[Tensor, Tensor]]:
    """Return the slots that examples read where they ask, and those that they read elsewhere.

    A running text asks everywhere. What is read behind all that is learned does not count.

    Args:
        model: With memory that stores written rows.
        examples: Of any lengths.
    """
    texts = [torch.from_numpy(example.ids).long() for example in examples]
    found = []
    for example, slots in zip(examples, slots_at(model, texts), strict=True):
        before = (slots >= 0) & (torch.arange(len(slots)) < example.spans[-1][1] - 1)
        asks = torch.from_numpy(example.labels() == IGNORE) | (example.form == "text")
        found.append((slots[before & asks], slots[before & ~asks]))
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
) -> tuple[list[Fact], list[Fact], list[Fact]]:
    """Take out what was taught before of what the data teaches and the model does not answer.

    Its rows would be read in the place of new ones. Rows that others hang on too stay, if all
    that is asked reads one that is taken out; otherwise the others go with them.

    Args:
        model: With a memory that was taught.
        data: What is going to be taught.
        answered: Groups of it that the model answers. Those that read what goes are taken out.

    Returns:
        What was taught with another answer; what goes and is not taught again, or not in all its
        prompts; and what stays and may be answered otherwise.
    """
    groups_of, teachings = _known_again(data), patch_of(model).teachings
    read: dict[int, list[Tensor]] = defaultdict(list)
    for example, (asking, _) in zip(data.examples, slots_read(model, data.examples), strict=True):
        read[example.group].append(asking)
    taken: dict[str, set[int]] = {}
    left = -1
    while left != (left := len(answered)):
        for teaching in teachings:
            taken[teaching.id] = _taken(teaching, groups_of, read, answered)
        facts = [fact for t in teachings for n, fact in enumerate(t.facts) if n in taken[t.id]]
        stay = [fact for t in teachings for n, fact in enumerate(t.facts) if n not in taken[t.id]]
        gone = _rows(facts)[~torch.isin(_rows(facts), _rows(stay))]
        readers = [fact for fact in stay if torch.isin(fact.reads, gone).any()]
        # They may be answered with what goes.
        answered.difference_update(*map(groups_of, [*facts, *readers]))
        answered -= {n for n, of in read.items() if torch.isin(torch.cat(of), gone).any()}
    for name, numbers in taken.items():
        if numbers:
            revert_patch(model, name, numbers)
    model.requires_grad_(False)
    taught = {digest for n in read for digest in data.asked[n]}
    corrected = [
        fact for fact in facts if {data.groups[n].answer for n in groups_of(fact)} - {fact.answer}
    ]
    lost = [fact for fact in facts if not groups_of(fact) or not taught.issuperset(fact.asked)]
    return corrected, lost, readers


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


def _taken(
    teaching: Teaching,
    groups_of: Callable[[Fact], set[int]],
    read: Mapping[int, Sequence[Tensor]],
    answered: Collection[int],
) -> set[int]:
    """Return the numbers of facts that are taught again, and of those that go with them."""
    again = {n for n, fact in enumerate(teaching.facts) if not groups_of(fact) <= {*answered}}
    stay = {n: fact for n, fact in enumerate(teaching.facts) if n not in again}
    shared, needed = _rows(stay.values()), []
    for fact in (teaching.facts[number] for number in again):
        own = fact.rows[~torch.isin(fact.rows, shared)]
        asking = [slots for group in groups_of(fact) for slots in read[group] if len(slots)]
        if not len(own) or not all(torch.isin(slots, own).any() for slots in asking):
            needed.append(fact)
    return again | {n for n, f in stay.items() if torch.isin(f.rows, _rows(needed)).any()}


def _rows(facts: Iterable[Fact]) -> Tensor:
    return torch.cat([torch.empty(0, dtype=torch.int64), *(fact.rows for fact in facts)])
