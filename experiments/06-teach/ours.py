"""The way of `memory-layers learn`, on the items of the protocol and measured after any pass.

The command reads its data from files and has its own measures; what it adds to a model, which rows
it plans and how it trains them is the same.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from protocol import Item, Protocol
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memory_layers.layers import WrittenTable
from memory_layers.layers.walk import memory_layers_of
from memory_layers.learn.background import own_questions, own_text
from memory_layers.learn.lesson import LearnSettings, Lesson
from memory_layers.learn.result import Silent
from memory_layers.learn.skeleton import speaks_at
from memory_layers.learn.sources import Example, Group, LearnData, Look, RecallItem


def data_of(protocol: Protocol) -> LearnData:
    """Return what is trained: one group for each fact."""
    facts = zip(protocol.facts, protocol.train, strict=True)
    groups = [
        Group("", f"{fact.relation}: {fact.subject}", fact.answer, 0, 1.0, fact.subject)
        for fact, _ in facts
    ]
    examples = [_example(item, n) for n, items in enumerate(protocol.train) for item in items]
    asked = ((),) * len(groups)
    return LearnData(tuple(examples), (), tuple(groups), Look((), 0, (), ()), asked)


def _example(item: Item, group: int) -> Example:
    ids = np.array((*item.prompt, *item.answer, *item.end), np.int32)
    form = "chat" if item.form.startswith("chat") else "statement"
    return Example(ids, ((len(item.prompt), len(ids)),), group, form)


def _recall_item(item: Item, tokenizer: PreTrainedTokenizerBase) -> RecallItem:
    ids = np.array((*item.prompt, *item.answer, tokenizer.eos_token_id), np.int32)
    return RecallItem(ids, len(item.prompt), len(ids), item.text, -1, "prompt", False, False)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    protocol: Protocol,
    *,
    lr: float | None,
    seed: int,
    passes: int,
    keep: Sequence[Item] = (),
) -> Iterator[tuple[int, int, float]]:
    """Train in place; yield (passes, updates, mean loss of the pass) at the end of each pass.

    What is to be kept is what `--keep` gives to the command.
    """
    settings = LearnSettings(lr=lr, seed=seed)
    lesson = Lesson(model, tokenizer, data_of(protocol), settings, Silent())
    own, asked = own_text(model, tokenizer, seed=seed), own_questions(model, tokenizer, seed=seed)
    lesson.add_memory(own)
    kept = [_recall_item(item, tokenizer) for item in keep]
    lesson.prepare(lesson.data, [own[::2], asked[::2]], kept, kept)
    lesson.begin()
    updates = 0
    for number in range(passes):
        done = lesson.one_pass(number)
        updates += done.updates
        yield number + 1, updates, done.loss


def is_taught(model: nn.Module) -> bool:
    """Return whether a model has a memory of this kind."""
    layers = memory_layers_of(model)
    return bool(layers) and isinstance(layers[0].values, WrittenTable)


def memory_bytes(model: nn.Module) -> int:
    """Return the size of the tensors of a patch: the rows, and what they are found by."""
    layers = memory_layers_of(model)
    tensors = {id(t): t for layer in layers for t in layer.state_dict(keep_vars=True).values()}
    tensors |= {id(t): t for t in layers[0].values.state_dict(keep_vars=True).values()}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def spoken(model: PreTrainedModel, texts: Sequence[torch.Tensor]) -> float:
    """Return the share of tokens at which the memory speaks."""
    speaks = speaks_at(model, texts)
    return sum(int(at.sum()) for at in speaks) / sum(map(len, speaks))
