"""Prompts that a taught model is to answer as its base did: users' own, or made from the base."""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from memory_layers.common.errors import UserError
from memory_layers.common.progress import Report, counter
from memory_layers.data.encode import encode_texts
from memory_layers.evaluate.batches import by_length
from memory_layers.learn.ask import measuring, said_after
from memory_layers.learn.skeleton import speaks_at
from memory_layers.learn.sources import LearnData, RecallItem, read_data

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Tokens of an answer that the base makes up.
ANSWER = 3
# Nats between the most likely token and the next one, at least. Of closer ones rounding decides.
MARGIN = 0.1
# Tokens of the base's text in front of what it goes on with. All chats begin with the same ones.
_CUTS = range(32, 81, 8)
_NAMES = re.compile(r"[A-Z][\w'-]+(?: [A-Z][\w'-]+){0,2}")


@dataclass(frozen=True, eq=False)
class Keep:
    """Prompts with the answers that are to stay.

    Attributes:
        name: Of the prompts, for people.
        items: Prompts and answers.
        exact: All tokens of an answer must stay, since it does not end where they do.
        alike: Made to be taken for what is taught. It is the hardest test, and no measure of what
            is lost in use.
        answered: The model answered all of them before.
    """

    name: str
    items: tuple[RecallItem, ...]
    exact: bool
    alike: bool = False
    answered: bool = False


def keep_of_files(
    paths: Sequence[str | Path], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[Keep]:
    """Read prompts that a model is to go on answering.

    Args:
        paths: Files or folders of what `read_data` reads, other than running text.
        tokenizer: Of the model.
        max_length: Most tokens of a prompt with its answer.

    Raises:
        UserError: A file is malformed, or has no prompts.
    """
    keeps = []
    for path in paths:
        items = read_data(path, tokenizer, max_length=max_length).items
        if not items:
            raise UserError(
                f"{path}:1: nothing can be asked, expected prompts with answers, got text alone. "
                "hint: a text whose loss is to stay is a background text"
            )
        keeps.append(Keep(Path(path).name, items, exact=False))
    return keeps


def answered_of(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    keep: Keep,
    progress: Report | None = None,
) -> Keep:
    """Return those of the prompts whose answer a model begins with, ended as the model goes on."""
    count = counter(len(keep.items), f"asking {keep.name}", progress)
    items = tuple(
        replace(item, ids=np.append(item.ids[: item.end - 1], np.int32(said)))
        for item, said in zip(
            keep.items, said_after(model, tokenizer, keep.items, count), strict=True
        )
        if said is not None
    )
    return replace(keep, items=items, exact=True, answered=True)


def continuations(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    own: Tensor,
    most: int = 64,
    *,
    seed: int = 0,
) -> Keep:
    """Cut a text of the base at random and note how the base goes on.

    Args:
        model: The base, or with memory that is silent.
        tokenizer: Of the model.
        own: [n, L] int64, text that the base wrote.
        most: Most prompts.
        seed: Of the cuts.
    """
    draw = random.Random(seed)  # noqa: S311
    cuts = [cut for cut in _CUTS if cut < own.shape[1]] or [own.shape[1]]
    rows = [int(n) for n in draw.choices(range(len(own)), k=most * 3 // 2)]
    prompts = dict.fromkeys(tuple(own[n, : draw.choice(cuts)].tolist()) for n in rows)
    return Keep("its own continuations", _answered(model, tokenizer, [*prompts], most), exact=True)


def neighbours(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    data: LearnData,
    own: Tensor,
    most: int = 128,
    *,
    seed: int = 0,
) -> list[Keep]:
    """Ask what is taught of subjects that it is not taught of, and note what the base says.

    Facts are asked of subjects made from two of their relation, or from names in the base's text.
    In other prompts the tokens that the memory speaks at are replaced.

    Args:
        model: With memory that is silent and knows what it is to speak at.
        tokenizer: Of the model.
        data: What is taught.
        own: [n, L] int64, text that the base wrote.
        most: Most prompts of a kind.
        seed: Of what is mixed.

    Returns:
        Prompts of each of the kinds that the data has.
    """
    draw = random.Random(seed)  # noqa: S311
    facts = [item for item in data.items if _kind(data, item) == "facts"]
    others = [item for item in data.items if _kind(data, item) != "facts"]
    natural, mixed = _other_subjects(tokenizer, data, facts, own, most, draw)
    made = (
        ("same wordings, other names", natural, False),
        ("same wordings, halves of two names", mixed, True),
        ("same prompts, words replaced", _other_words(model, others, own, most, draw), True),
    )
    keeps = []
    for name, prompts, alike in made:
        if items := _answered(model, tokenizer, prompts, most):
            keeps.append(Keep(name, items, exact=True, alike=alike))
    return keeps


def _kind(data: LearnData, item: RecallItem) -> str:
    return data.look.sources[data.groups[item.group].source].kind


def _other_subjects(
    tokenizer: Any,  # noqa: ANN401
    data: LearnData,
    items: Sequence[RecallItem],
    own: Tensor,
    most: int,
    draw: random.Random,
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return prompts of facts with a name of the base's text as subject, and with a mixed one."""
    named = {item.group: data.groups[item.group].name.partition(": ") for item in items}
    of_relation: dict[str, list[str]] = defaultdict(list)
    for relation, _, subject in named.values():
        of_relation[relation].append(subject)
    taken = {subject for subjects in of_relation.values() for subject in subjects}
    names = _names(" ".join(tokenizer.batch_decode(own, skip_special_tokens=True)))
    natural: dict[tuple[int, ...], None] = {}
    mixed: dict[tuple[int, ...], None] = {}
    for item in draw.sample(items, min(len(items), most)):
        relation, _, subject = named[item.group]
        others = [(mixed, _mixed(subject, draw.choice(of_relation[relation])))]
        others += [(natural, draw.choice(names))] if names else []
        for found, other in others:
            if other not in taken and (prompt := _replaced(tokenizer, item, subject, other)):
                found[prompt] = None
    return list(natural), list(mixed)


def _names(text: str) -> list[str]:
    """Return what is written with a capital and is no word that only begins a sentence."""
    words = set(re.findall(r"[\w'-]+", text))
    found = dict.fromkeys(_NAMES.findall(text))
    return [name for name in found if words.isdisjoint(name.lower().split())]


def _mixed(one: str, other: str) -> str:
    """Return the first half of a name and the second half of another one, of words if it can be."""
    first, second = one.split(), other.split()
    if min(len(first), len(second)) > 1:
        return " ".join([*first[: -(-len(first) // 2)], *second[len(second) // 2 :]])
    return one[: -(-len(one) // 2)] + other[len(other) // 2 :]


def _replaced(
    tokenizer: Any,  # noqa: ANN401
    item: RecallItem,
    subject: str,
    other: str,
) -> tuple[int, ...]:
    """Return a prompt with another subject, or nothing where its tokens do not show it."""
    ids = item.prompt_ids.tolist()
    for space in (" ", ""):
        old, new = (t.ids for t in encode_texts(tokenizer, [space + subject, space + other]))
        at = [n for n in range(len(ids)) if ids[n : n + len(old)] == old]
        if at:
            # From the end, so that the places before it stay where they are.
            for n in reversed(at):
                ids[n : n + len(old)] = new
            return tuple(ids)
    return ()


def _other_words(
    model: "PreTrainedModel",
    items: Sequence[RecallItem],
    own: Tensor,
    most: int,
    draw: random.Random,
) -> list[tuple[int, ...]]:
    """Return prompts with words of the base's text in the place of those that they are known by."""
    some = draw.sample(items, min(len(items), most * 3 // 2))
    words = own.flatten().tolist()
    taken = {tuple(item.prompt_ids.tolist()) for item in items}
    prompts: dict[tuple[int, ...], None] = {}
    texts = [torch.from_numpy(item.prompt_ids).long() for item in some]
    for text, speaks in zip(texts, speaks_at(model, texts), strict=True):
        ids = text.tolist()
        for place in speaks.nonzero()[:, 0].tolist():
            ids[place] = draw.choice(words)
        if tuple(ids) not in taken:
            prompts[tuple(ids)] = None
    return list(prompts)


def _answered(
    model: Any,  # noqa: ANN401  (PreTrainedModel's forward takes anything)
    tokenizer: Any,  # noqa: ANN401
    prompts: Sequence[tuple[int, ...]],
    most: int,
) -> tuple[RecallItem, ...]:
    """Return prompts with what the base says, those where it is sure, at most so many."""
    found: dict[int, RecallItem] = {}
    with measuring(model):
        for part in by_length(prompts, len(tokenizer), extra=ANSWER):
            ids = torch.tensor([prompts[n] for n in part], device=model.device)
            sure = torch.ones(len(part), dtype=torch.bool, device=model.device)
            said, cache, now = [], None, ids
            for _ in range(ANSWER):
                out = model(input_ids=now, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                best, which = out.logits[:, -1].float().topk(2)
                sure &= best[:, 0] - best[:, 1] > MARGIN
                now = which[:, :1]
                said.append(now)
            whole = torch.cat([ids, *said], 1).cpu().numpy().astype(np.int32)
            for n, row, is_sure in zip(part, whole, sure.tolist(), strict=True):
                if is_sure:
                    start = len(prompts[n])
                    text = tokenizer.decode(row[start:], skip_special_tokens=True).strip()
                    found[n] = RecallItem(row, start, len(row), text, -1, "prompt", False, True)
    # Batches go by length, and the first prompts are not to be the shortest.
    return tuple(found[n] for n in sorted(found)[:most])
