"""Inputs: which slots are read, drawn or recorded from a model, with which weights, from what."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.request import Request, Sizes
from memory_layers.common.errors import UserError
from memory_layers.config import MemoryConfig
from memory_layers.ops.huge_pages import advise_huge_pages

ZIPF_EXPONENT = 1.0
SEED = 0
# Rows of random numbers, repeated to fill a table: drawing 2**30 numbers takes longer than a run.
RANDOM_ROWS = 2**12
VALUE_STD = 0.02
# Enough statements for the reads of any run on a CPU: about half a million tokens.
RELATIONS = ("airport_iata", "airport_icao", "airport_timezone", "airport_country")
SUBJECTS = 2000
LENGTH, SEQUENCES = 128, 8


@dataclass(frozen=True)
class Reads:
    """Which rows the tokens of a step read.

    Attributes:
        slots: [T, J] int64.
        weights: [T, J] fp32.
        num_rows: N.
        width: V.
        distribution: Of the slots, for the result file.
    """

    slots: Tensor
    weights: Tensor
    num_rows: int
    width: int
    distribution: dict[str, object]

    @property
    def distinct(self) -> int:
        """R."""
        return int(self.slots.unique().numel())

    @property
    def factor_bytes(self) -> int:
        """Bytes of slots and weights."""
        return self.slots.nbytes + self.weights.nbytes

    @property
    def facts(self) -> dict[str, object]:
        """What of these reads explains a time."""
        return {"distinct_rows": self.distinct, "distribution": self.distribution}


def make_reads(request: Request) -> Reads:
    """Draw the reads that a request asks for, or record them from its model."""
    sizes = request.sizes
    if request.slots == "recorded" and request.model is not None:
        return record_reads(request.model, sizes.tokens, request.device)
    generator = torch.Generator().manual_seed(SEED)
    shape = (sizes.tokens, sizes.reads)
    distribution: dict[str, object] = {"name": request.slots, "seed": SEED}
    if request.slots == "zipf":
        slots = _zipf(sizes.slots, shape, generator)
        distribution |= {"exponent": ZIPF_EXPONENT, "permuted": True}
    else:
        slots = torch.randint(sizes.slots, shape, generator=generator)
    # As a layer weighs them: a softmax over the K reads of a head.
    scores = torch.randn(sizes.tokens, sizes.heads, sizes.top_k, generator=generator)
    weights = scores.softmax(dim=-1).flatten(1)
    device = request.device
    return Reads(slots.to(device), weights.to(device), sizes.slots, sizes.value_dim, distribution)


def _zipf(num_rows: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Draw ranks with probability ~ rank ** -exponent, and scatter the ranks over the table."""
    share = torch.arange(1, num_rows + 1, dtype=torch.float64).pow(-ZIPF_EXPONENT).cumsum(0)
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64) * share[-1]
    ranks = torch.searchsorted(share, drawn).clamp(max=num_rows - 1)
    return torch.randperm(num_rows, generator=generator)[ranks]


def make_table(num_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Fill an [N, V] table with normal numbers, in huge pages as ValueTable's."""
    generator = torch.Generator().manual_seed(SEED)
    block = torch.randn(min(num_rows, RANDOM_ROWS), width, generator=generator) * VALUE_STD
    table = torch.empty(num_rows, width, dtype=dtype, device=device)
    advise_huge_pages(table)
    block = block.to(device=device, dtype=dtype)
    for low in range(0, num_rows, len(block)):
        table[low : low + len(block)] = block[: num_rows - low]
    return table


def make_vectors(tokens: int, width: int, device: torch.device) -> Tensor:
    """Draw one fp32 vector of length about 1 for each token: x, or the gradient of a read."""
    generator = torch.Generator().manual_seed(SEED + 1)
    return (torch.randn(tokens, width, generator=generator) / math.sqrt(width)).to(device)


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
        slots=memory.num_slots,
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
    from memory_layers.evaluate.trained import load_trained
    from memory_layers.layers.walk import find_layers

    model, tokenizer = load_trained(folder)
    table = next(iter(find_layers(model).values())).values
    calls: list[tuple[Tensor, Tensor]] = []

    def keep(_module: nn.Module, inputs: tuple[Tensor, Tensor]) -> None:
        calls.append((inputs[0].detach().clone(), inputs[1].detach().clone()))

    table.register_forward_pre_hook(keep)
    ids = [
        i
        for text in _statements()
        for i in (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    ]
    with torch.no_grad():
        for batch in _batches(ids, min(LENGTH, model.config.max_position_embeddings)):
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


def _statements() -> Sequence[str]:
    from memory_layers.data.config import DataConfig
    from memory_layers.data.facts import build_corpus
    from memory_layers.data.prepare import read_facts

    config = DataConfig(relations=RELATIONS, max_subjects=SUBJECTS, seed=SEED)
    return build_corpus(read_facts(config)).documents


def _batches(ids: list[int], length: int) -> Iterator[Tensor]:
    step = length * SEQUENCES
    for low in range(0, len(ids) - step + 1, step):
        yield torch.tensor(ids[low : low + step]).view(SEQUENCES, length)
