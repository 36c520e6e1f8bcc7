"""Which prompts a model answers, under greedy decoding."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from memory_layers.evaluate.batches import SpanScore, by_length, score_spans
from memory_layers.evaluate.recall import end_tokens, gives
from memory_layers.learn.sources import RecallItem

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@contextmanager
def measuring(model: "PreTrainedModel") -> Generator[None]:
    """Run a model without dropout and gradients, and leave it as it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def ask(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    items: Sequence[RecallItem],
    *,
    exact: bool = False,
    progress: Callable[[int], object] = lambda done: None,
) -> list[bool]:
    """Ask prompts and tell which of them are answered.

    Args:
        model: A causal language model.
        tokenizer: Of the model.
        items: Prompts with their answers. An answer counts if it ends where it should: with the
            token that the text has, a special token, the end of a line or punctuation. Any of
            the right answers of an item counts.
        exact: All tokens must be those of the item, that which ends the answer too.
        progress: Called with a number of items that were asked.
    """
    ends = end_tokens(tokenizer)
    scores = _scores(model, tokenizer, items, progress)
    right = [
        score.correct if score.correct or exact else gives(score, item.answer, tokenizer, ends)
        for item, score in zip(items, scores, strict=True)
    ]
    places = [n for n, item in enumerate(items) if not (right[n] or exact) for _ in item.others]
    others = [other for n in dict.fromkeys(places) for other in items[n].others]
    if others:
        for n, is_right in zip(places, ask(model, tokenizer, others), strict=True):
            right[n] |= is_right
    return right


def said_after(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    items: Sequence[RecallItem],
    progress: Callable[[int], object] = lambda done: None,
) -> list[int | None]:
    """Return which token a model says behind each answer. None: it says another answer."""
    return [score.last for score in _scores(model, tokenizer, items, progress)]


def _scores(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    items: Sequence[RecallItem],
    progress: Callable[[int], object],
) -> list[SpanScore]:
    rows = [(item.ids[: item.end].tolist(), (item.start, item.end)) for item in items]
    found: dict[int, SpanScore] = {}
    with measuring(model):
        for part in by_length([ids for ids, _ in rows], len(tokenizer)):
            scores = score_spans(model, [rows[n] for n in part])
            found |= dict(zip(part, scores, strict=True))
            progress(len(part))
    return [found[n] for n in range(len(rows))]


def all_right(items: Sequence[RecallItem], right: Sequence[bool]) -> list[int]:
    """Return the groups of which all items are answered. One without items is not among them.

    Args:
        items: Of any groups.
        right: From `ask`.
    """
    wrong = {item.group for item, is_right in zip(items, right, strict=True) if not is_right}
    return sorted({item.group for item in items} - wrong)
