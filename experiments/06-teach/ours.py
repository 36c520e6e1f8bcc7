"""The way of `memory-layers learn`, on the items of the protocol and measured after any pass.

The command reads its data from files and has its own measures; what it adds to a model, which rows
it plans and how it trains them is the same.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from protocol import Item, Protocol
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memory_layers.learn.background import own_text
from memory_layers.learn.lesson import LearnSettings, Lesson
from memory_layers.learn.result import Silent
from memory_layers.learn.skeleton import speaks_at
from memory_layers.learn.sources import Example, Group, LearnData, Look
from memory_layers.models import record_teaching


def data_of(protocol: Protocol) -> LearnData:
    """Return what is trained: one group for each fact."""
    facts = zip(protocol.facts, protocol.train, strict=True)
    groups = [
        Group("", f"{fact.relation}: {fact.subject}", fact.answer, 0, 1.0, fact.subject)
        for fact, _ in facts
    ]
    examples = [_example(item, n) for n, items in enumerate(protocol.train) for item in items]
    return LearnData(tuple(examples), (), tuple(groups), Look((), 0, (), ()), "")


def _example(item: Item, group: int) -> Example:
    ids = np.array((*item.prompt, *item.answer, *item.end), np.int32)
    form = "chat" if item.form.startswith("chat") else "statement"
    return Example(ids, ((len(item.prompt), len(ids)),), group, form)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    protocol: Protocol,
    *,
    lr: float | None,
    seed: int,
    passes: Sequence[int],
    out: Path,
) -> Iterator[tuple[int, int, float]]:
    """Train in place; yield (passes, updates, mean loss of the pass) at the end of each pass.

    What the command would write is in `out` after each of `passes`.
    """
    settings = LearnSettings(lr=lr, seed=seed)
    lesson = Lesson(model, tokenizer, data_of(protocol), settings, Silent())
    own = own_text(model, tokenizer, seed=seed)
    lesson.prepare(own, [own[::2]], None, [])
    lesson.begin()
    updates = 0
    for number in range(max(passes)):
        done = lesson.one_pass(number)
        updates += done.updates
        if number + 1 in passes:
            record_teaching(model, facts=lesson.facts()).save(out)
        yield number + 1, updates, done.loss


def spoken(model: PreTrainedModel, texts: Sequence[torch.Tensor]) -> float:
    """Return the share of tokens at which the memory speaks."""
    speaks = speaks_at(model, texts)
    return sum(int(at.sum()) for at in speaks) / sum(map(len, speaks))
