"""What the examples share: a base with its tokenizer, memory beside it, and texts to train on."""

import random
from pathlib import Path

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from memory_layers import MemoryConfig
from memory_layers.data.config import DataConfig
from memory_layers.data.encode import encode_texts
from memory_layers.data.prepare import corpus_of
from memory_layers.models import add_memory, freeze_all_but_memory, resolve_model


def load_base(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer, which gets a padding token if it has none."""
    found = resolve_model(name)
    tokenizer = AutoTokenizer.from_pretrained(found, trust_remote_code=False)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(found, trust_remote_code=False), tokenizer


def load_with_memory(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, put memory beside two of its blocks, and freeze all but the memory."""
    model, tokenizer = load_base(name)
    blocks = model.config.num_hidden_layers
    layers = tuple(sorted({blocks // 2, 3 * blocks // 4}))
    config = MemoryConfig(layers=layers, sub_keys=128, placement="beside")
    freeze_all_but_memory(add_memory(model, config))
    return model, tokenizer


def read_texts(path: str) -> list[str]:
    """Return the documents of a folder of facts, or the lines of a text file that are not empty."""
    if Path(path).is_dir():
        return list(corpus_of(DataConfig(facts=path)).documents)
    return [text for text in Path(path).read_text("utf-8").splitlines() if text]


def mixed(texts: list[str], keep: str | None) -> list[str]:
    """Return texts with up to as many others that the model should not forget, drawn at random.

    Args:
        texts: To learn.
        keep: Where the others are, as for read_texts. None: no others.
    """
    others = [] if keep is None else read_texts(keep)
    return texts + random.Random(0).sample(others, min(len(others), len(texts)))  # noqa: S311


def encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, list[int]]]:
    """Return texts as tokens, each with the token that ends it, all of which are predicted."""
    rows = [
        [*found.ids, tokenizer.eos_token_id]
        for found in encode_texts(tokenizer, texts, special_tokens=True)
    ]
    return [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids} for ids in rows]


def collator(tokenizer: PreTrainedTokenizerBase) -> DataCollatorForSeq2Seq:
    """Return what pads a batch, and leaves padding out of the loss.

    Padding is what lies behind a text, not what looks like it: where the token that pads is the
    one that ends a text, the end is still learned.
    """
    return DataCollatorForSeq2Seq(tokenizer)
