"""Closed-book recall: does the model give the answer, and end it, under greedy decoding?"""

import random
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from heapq import nsmallest
from typing import TYPE_CHECKING, Any

import torch

from memory_layers.data.encode import encode_texts
from memory_layers.data.facts import Probe
from memory_layers.data.tokens import answer_tokens
from memory_layers.evaluate.batches import SpanScore, by_length, score_spans
from memory_layers.evaluate.positions import check_lengths
from memory_layers.evaluate.scores import is_over

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def pick_items(items: Sequence[Probe], count: int | None) -> list[int]:
    """Draw `count` items of each kind, the same in every run, and return their numbers.

    Facts are drawn: of two kinds the same ones are asked, as far as they have the same.

    Args:
        items: To draw from.
        count: Items of a kind. None: all.
    """
    if count is None:
        return list(range(len(items)))
    members = defaultdict(list)
    for index, item in enumerate(items):
        members[item.kind].append(index)
    # Not every n-th: a file may have its relations in turn.
    facts = [*dict.fromkeys((item.relation, item.subject) for item in items)]
    random.Random(0).shuffle(facts)  # noqa: S311
    order = {fact: n for n, fact in enumerate(facts)}
    picked = []
    for _, indices in sorted(members.items()):
        picked += sorted(
            nsmallest(count, indices, key=lambda n: order[items[n].relation, items[n].subject])
        )
    return picked


def recall_items(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    items: Sequence[Probe],
    *,
    special_tokens: bool = False,
    progress: Callable[[int], object] = lambda done: None,
) -> list[SpanScore]:
    """Ask every item and return the results in the order of the items: see recall_share."""
    results = recall_share(
        model, tokenizer, items, (0, 1), special_tokens=special_tokens, progress=progress
    )
    return [results[index] for index in range(len(items))]


@torch.no_grad()
def recall_share(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    items: Sequence[Probe],
    share: tuple[int, int],
    *,
    special_tokens: bool = False,
    progress: Callable[[int], object] = lambda done: None,
) -> dict[int, SpanScore]:
    """Ask a share of the items, and return the results by the number of the item.

    The token after the answer is asked for too: an answer that goes on is another answer. It is
    the one that the text has, or the end of a text or of a line, or punctuation: see is_over. One
    forward pass decides: if each token is the most likely one after the right tokens before it,
    greedy decoding gives exactly this answer. An item is right if any of its answers is given. Its
    likelihood is that of the first one, which is in its text.

    Args:
        model: A causal language model.
        tokenizer: Its fast tokenizer.
        items: Texts with the character span of their answers.
        share: (n, of): the n-th of so many shares. All shares take the same number of passes, as
            ranks that hold a part of the model each must.
        special_tokens: Begin texts as the tokenizer does by default. Not so in our training.
        progress: Called with a number of items that were asked.

    Raises:
        UserError: A text is longer than the model can read.
    """
    reader, readers = share
    ends = end_tokens(tokenizer)
    was_training = model.training
    model.eval()
    rows = _rows(tokenizer, items, special_tokens=special_tokens)
    for item, asked in zip(items, rows, strict=True):
        check_lengths(model, [item.text] * len(asked), [ids for ids, _ in asked])
    results: dict[int, SpanScore] = {}
    # Together go items whose answers are of the same lengths, one answer of each in a pass.
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, own_rows in enumerate(rows):
        alike[tuple(len(ids) for ids, _ in own_rows)].append(index)
    for lengths, members in alike.items():
        for part in by_length([range(max(lengths))] * len(members), len(tokenizer), times=readers):
            own = [members[n] for n in part[reader::readers]]
            for answer in range(len(lengths)):
                # Without an item of its own, a share repeats one to take part.
                asked = [rows[index][answer] for index in own or [members[part[0]]]]
                for index, score in zip(own, score_spans(model, asked), strict=False):
                    right = gives(score, items[index].answers[answer], tokenizer, ends)
                    first = results.setdefault(index, replace(score, correct=right))
                    results[index] = replace(first, correct=first.correct or right)
            progress(len(part))
    model.train(was_training)
    return results


def _rows(
    tokenizer: "PreTrainedTokenizerBase", items: Sequence[Probe], *, special_tokens: bool
) -> list[list[tuple[list[int], tuple[int, int]]]]:
    """Return the token ids of each item with each of its answers, and where the answer is."""
    asked = [item.with_answer(answer) for item in items for answer in item.answers]
    encoded = encode_texts(
        tokenizer, [item.text for item in asked], special_tokens=special_tokens, offsets=True
    )
    rows = iter(
        ([*ids, tokenizer.eos_token_id],
         answer_tokens(item.text, offsets, item.answer_start, item.answer_end))
        for item, (ids, offsets) in zip(asked, encoded, strict=True)
    )  # fmt: skip
    return [[next(rows) for _ in item.answers] for item in items]


def end_tokens(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Return the tokens that stand for no text: what comes after them is another text, or turn."""
    return {*tokenizer.all_special_ids} - {tokenizer.pad_token_id} | {tokenizer.eos_token_id}


def gives(
    score: SpanScore, answer: str, tokenizer: "PreTrainedTokenizerBase", ends: Collection[int]
) -> bool:
    """Say whether a model gives an answer, and ends it there.

    Args:
        score: Of the tokens of the answer and the one after them.
        answer: Its text.
        tokenizer: Decodes the token that the model ends it with.
        ends: Tokens that end any text: end_tokens.
    """
    if score.correct or score.last is None:
        return score.correct
    return score.last in ends or is_over(answer, str(tokenizer.decode(score.last)))


def summarize_recall(items: Sequence[Probe], results: Sequence[SpanScore]) -> dict[str, Any]:
    """Average results by kind and by relation.

    Returns:
        recall: Share of correct items for each kind, and `by_relation` likewise.
        answer_nll: Mean nats of an answer, for each kind.
    """
    kinds: dict[str, list[SpanScore]] = defaultdict(list)
    relations: dict[str, dict[str, list[SpanScore]]] = defaultdict(lambda: defaultdict(list))
    for item, result in zip(items, results, strict=True):
        kinds[item.kind].append(result)
        relations[item.relation][item.kind].append(result)
    recall: dict[str, Any] = {kind: _correct(found) for kind, found in sorted(kinds.items())}
    recall["by_relation"] = {
        relation: {kind: _correct(found) for kind, found in sorted(by_kind.items())}
        for relation, by_kind in sorted(relations.items())
    }
    nll = {kind: sum(r.nll for r in found) / len(found) for kind, found in sorted(kinds.items())}
    return {"recall": recall, "answer_nll": nll}


def _correct(results: Sequence[SpanScore]) -> float:
    """Return the share of results that are correct."""
    return sum(result.correct for result in results) / len(results)
