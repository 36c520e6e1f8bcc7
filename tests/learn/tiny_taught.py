"""A tiny model with a tokenizer and silent memory, and data that asks for what it says itself."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from tiny_families import tiny_model
from tiny_models import tiny_memory
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memory_layers.data.facts import Fact, FactSet, RelationTemplates
from memory_layers.layers import WrittenTable
from memory_layers.layers.walk import find_tables, memory_layers_of
from memory_layers.learn.sources import LearnData, RecallItem, read_data
from memory_layers.models import add_memory

FACTS = FactSet(
    tuple(
        Fact("code", subject, answer)
        for subject, answer in (("Oslo", "OSL"), ("Paris", "PAR"), ("New France", "NFR"))
    ),
    {
        "code": RelationTemplates(
            ("The code of {subject} is {answer}.", "{subject} has the code {answer}."),
            "Q: What is the code of {subject}? A: {answer}",
            ("At {subject} they say {answer}",),
        )
    },
)


def base_for(tokenizer: PreTrainedTokenizerBase, **changes: object) -> PreTrainedModel:
    """An untrained Llama, sure enough of what it says that rounding does not decide."""
    model = tiny_model(
        "llama",
        vocab_size=len(tokenizer),
        max_position_embeddings=400,
        pad_token_id=None,
        **changes,
    )
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)
    return model


def with_memory(model: PreTrainedModel, **changes: object) -> PreTrainedModel:
    """Add memory whose values are zero."""
    config = tiny_memory(placement="beside", gate="none", value_init_std=0, **changes)
    return add_memory(model, config).eval()


def write_rows(model: PreTrainedModel, size: float, share: float = 1.0) -> None:
    """Teach it something, never mind what: write the first slots of its table."""
    for table in find_tables(model).values():
        if isinstance(table, WrittenTable):
            keys, radius = _some_queries(model, share)
            rows = torch.cat([keys, radius, size * torch.randn(2, table.value_dim)], 1)
            table.write(torch.arange(2), rows[:, : table.value_dim])
            continue
        count = round(share * len(table.weight))
        with torch.no_grad():
            table.weight[:count] = size * torch.randn(count, table.weight.shape[1])


def _some_queries(model: PreTrainedModel, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Two queries of any tokens, and radii within which about a share of all tokens is."""
    found: list[torch.Tensor] = []
    hook = memory_layers_of(model)[0].query.register_forward_hook(
        lambda _m, _x, query: found.append(query.flatten(1))
    )
    with torch.no_grad():
        model(input_ids=torch.arange(200)[None])
    hook.remove()
    keys = found[0][[3, 70]]
    return keys, torch.cdist(keys, found[0]).quantile(share, 1)[:, None]


def data_for(tokenizer: PreTrainedTokenizerBase) -> LearnData:
    return read_data(FACTS, tokenizer, max_length=200)


def said_by(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], count: int
) -> list[int]:
    """What a model goes on with, one token after the other, without a cache."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            logits = model(input_ids=torch.tensor([ids], device=model.device)).logits
            ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


def known_items(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[RecallItem]
) -> tuple[RecallItem, ...]:
    """Items with the answers that a model gives."""
    found = []
    for item in items:
        said = said_by(model, tokenizer, item.prompt_ids.tolist(), 3)
        ids = np.concatenate([item.prompt_ids, np.asarray(said, np.int32)])
        answer = tokenizer.decode(said[:-1])
        found.append(replace(item, ids=ids, end=len(ids), answer=answer))
    return tuple(found)
