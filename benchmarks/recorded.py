"""Reads recorded from a trained model while it reads statements of facts."""

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.inputs import SEED, Reads
from benchmarks.sizes import Sizes
from memory_layers.common.errors import UserError
from memory_layers.config import MemoryConfig
from memory_layers.layers import MemoryLayer, ValueTable

# Enough statements for the reads of any run on a CPU: about half a million tokens.
RELATIONS = ("airport_iata", "airport_icao", "airport_timezone", "airport_country")
SUBJECTS = 2000
LENGTH = 128
SEQUENCES = 8


def model_sizes(folder: Path, sizes: Sizes) -> Sizes:
    """Return sizes in which those of the table and of its reads are a model's.

    Args:
        folder: Of the model, as `train` wrote it.
        sizes: The others.

    Raises:
        UserError: There is no model with memory in this folder.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is no model folder: it has no config.json. hint: give the folder that "
            "training wrote, runs/NAME/model"
        )
    config = json.loads(path.read_text("utf-8"))
    if not config.get("memory"):
        raise UserError(f"{folder} has no memory layers. hint: a model trained with `memory:`")
    memory = MemoryConfig.from_dict(config["memory"])
    return replace(
        sizes,
        slots=memory.slots,
        value_dim=memory.resolved(config["hidden_size"]).value_dim,
        heads=memory.heads,
        top_k=memory.top_k,
    )


def record_reads(folder: Path, tokens: int, device: torch.device) -> Reads:
    """Run a model over built-in facts and keep what its first value table was asked for.

    Layers that share the table are recorded one after the other, as a training step reads it.

    Args:
        folder: Of the model, as `train` wrote it.
        tokens: Reads to keep.
        device: Where to put them.

    Raises:
        UserError: There is too little text.
    """
    from memory_layers.data.config import DataConfig
    from memory_layers.data.facts import build_corpus
    from memory_layers.data.prepare import read_facts
    from memory_layers.evaluate.trained import load_trained

    model, tokenizer = load_trained(folder)
    layers = [module for module in model.modules() if isinstance(module, MemoryLayer)]
    documents = build_corpus(
        read_facts(DataConfig(relations=RELATIONS, max_subjects=SUBJECTS, seed=SEED))
    ).documents
    ids = [i for text in documents for i in _encode(tokenizer, text)]
    length = min(LENGTH, model.config.max_position_embeddings)
    table = layers[0].values
    calls: list[tuple[Tensor, Tensor]] = []
    with _recorded(table, calls), torch.no_grad():
        for batch in _batches(ids, length):
            if sum(len(slots) for slots, _ in calls) >= tokens:
                break
            model(input_ids=batch, use_cache=False)
    slots, weights = (torch.cat(parts) for parts in zip(*calls, strict=True))
    if len(slots) < tokens:
        raise UserError(f"the built-in facts gave {len(slots)} reads, {tokens} were asked for")
    name = {"name": "recorded", "model": str(folder), "text": "statements of built-in facts"}
    num_rows, width = table.weight.shape
    return Reads(
        slots[:tokens].to(device), weights[:tokens].float().to(device), num_rows, width, name
    )


def _encode(tokenizer: Any, text: str) -> list[int]:  # noqa: ANN401
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def _batches(ids: list[int], length: int) -> Iterator[Tensor]:
    step = length * SEQUENCES
    for low in range(0, len(ids) - step + 1, step):
        yield torch.tensor(ids[low : low + step]).view(SEQUENCES, length)


@contextmanager
def _recorded(table: ValueTable, calls: list[tuple[Tensor, Tensor]]) -> Generator[None]:
    def keep(_module: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        calls.append((inputs[0].detach().clone(), inputs[1].detach().clone()))

    handle = table.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()
