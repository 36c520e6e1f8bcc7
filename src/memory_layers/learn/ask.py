"""Which prompts a model answers, under greedy decoding."""

from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from memory_layers.evaluate.batches import by_length, score_spans
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
            token that the text has, a special token, the end of a line or punctuation.
        exact: All tokens must be those of the item, that which ends the answer too.
        progress: Called with a number of items that were asked.
    """
    ends = end_tokens(tokenizer)
    rows = [(item.ids[: item.end].tolist(), (item.start, item.end)) for item in items]
    right = [False] * len(rows)
    with measuring(model):
        for part in by_length([ids for ids, _ in rows], len(tokenizer)):
            for n, score in zip(part, score_spans(model, [rows[n] for n in part]), strict=True):
                whole = score.correct or exact
                answer = items[n].answer
                right[n] = score.correct if whole else gives(score, answer, tokenizer, ends)
            progress(len(part))
    return right


def known(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    items: Sequence[RecallItem],
    *,
    progress: Callable[[int], object] = lambda done: None,
) -> list[int]:
    """Return the groups that a model answers already, in all wordings.

    What it does not know is asked in few of its wordings.

    Args:
        model: A base, or one whose memory is silent.
        tokenizer: Of the model.
        items: Of all groups. A group without any is not known.
        progress: Called with a number of items that were asked or need not be.
    """
    left: dict[int, list[RecallItem]] = defaultdict(list)
    for item in items:
        left[item.group].append(item)
    found = []
    # All that is left is asked at once after the second round: few groups get there.
    for count in (1, 1, len(items)):
        asked = [item for group in left for item in left[group][:count]]
        wrong = {
            item.group
            for item, right in zip(asked, ask(model, tokenizer, asked), strict=True)
            if not right
        }
        progress(len(asked) + sum(len(left[group][count:]) for group in wrong))
        rest = {group: members[count:] for group, members in left.items() if group not in wrong}
        found += [group for group, members in rest.items() if not members]
        left = defaultdict(list, {group: members for group, members in rest.items() if members})
    return sorted(found)
