"""Skeleton: the part of a memory that is fixed before anything is taught.

It decides by which slots the memory knows a token again. Next: rows.py.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from memory_layers.config import MemoryConfig
from memory_layers.layers import MemoryLayer
from memory_layers.layers.walk import memory_layers_of
from memory_layers.models import freeze_all_but_memory
from memory_layers.models.classes import backbone_of, family_of
from memory_layers.models.surgery import attach_memory

# Shares of the depth at which what is read is added. The first is where it is looked up: there the
# last token of a name stands for the name, whatever was said before it.
DEPTHS = (0.14, 0.27, 0.4, 0.54, 0.67, 0.8)
WIDEST_QUERY = 1024
# Tokens at the beginning of a text, whose hidden states are unlike all others.
SKIPPED = 3
# Tokens of a short text.
PIECE = 8
# Of the variance along the first direction: less is taken for noise and not blown up further.
NOISE = 1e-5
_BATCH = 16


class _LookedUp(Exception):  # noqa: N818  (not an error)
    """The pass has reached the look-up, and the rest of it is not needed."""


def choose_memory(model: PreTrainedModel) -> MemoryConfig:
    """Return the memory to teach a model with, for a model of any depth and width."""
    width = backbone_of(model).config.hidden_size
    depth = len(family_of(model).blocks_of(backbone_of(model)))
    return MemoryConfig(
        layers=tuple(dict.fromkeys(min(depth - 1, round(share * depth)) for share in DEPTHS)),
        placement="beside",
        gate="none",
        value_init_std=0,
        sub_keys=1024,
        heads=1,
        top_k=4,
        key_dim=min(width // 2 * 2, WIDEST_QUERY),
        lookup="first",
        match="nearest",
    )


def build_skeleton(model: PreTrainedModel, config: MemoryConfig, tokens: Tensor, seed: int) -> None:
    """Add a memory that has been taught nothing to a model, in place, and freeze the model.

    The query is the whitened hidden state of a token, turned at random: q = R C^(-1/2) (x - mean),
    where mean and covariance C are those of text. So what most tokens have in common does not
    count, and what is rare does. Sub-keys are random.

    Args:
        model: Without memory.
        config: Of the memory.
        tokens: Text that is usual for the model, [rows, L].
        seed: Draws sub-keys and R.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        attach_memory(model, config, value_dtype=torch.float32)
        freeze_all_but_memory(model)
        layer = memory_layers_of(model)[0]
        layer.requires_grad_(False)
        whole = hidden_at_lookup(model, tokens)[:, SKIPPED:].flatten(0, 1)
        # Names stand at the beginning of a text more often than other tokens do.
        count = tokens.shape[1] // PIECE
        pieces = tokens[:, : count * PIECE].reshape(-1, PIECE) if count else tokens
        begun = hidden_at_lookup(model, pieces)[:, 1:].flatten(0, 1)
        _whiten(layer, torch.cat([whole, begun]))


def _whiten(layer: MemoryLayer, hidden: Tensor) -> None:
    projection = layer.query.proj
    # Eigenvectors in float64: in float32, the small ones are noise.
    hidden = hidden.double()
    mean = hidden.mean(0)
    values, vectors = torch.linalg.eigh((hidden - mean).T.cov())
    scale = values.clamp_min(values[-1] * NOISE).rsqrt()
    # Drawn on the CPU, so that every device gets the same.
    turn, _ = torch.linalg.qr(torch.randn(len(mean), len(mean), dtype=torch.float64))
    turn = turn.to(hidden.device)
    weight = (turn.T @ (vectors * scale).T)[: projection.out_features]
    with torch.no_grad():
        projection.weight.copy_(weight)
        projection.bias.copy_(-weight @ mean)


def hidden_at_lookup(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the hidden states that the memory looks up by: [rows, L] → [rows, L, D]."""
    layer = memory_layers_of(model)[0]
    with _stopping(layer) as caught, torch.no_grad():
        for rows in tokens.split(_BATCH):
            try:
                backbone_of(model)(input_ids=rows.to(model.device), use_cache=False)
            except _LookedUp:
                continue
        return torch.cat(caught)


def look_up(model: PreTrainedModel, texts: Sequence[Tensor]) -> list[Tensor]:
    """Return the queries of the tokens of texts: for each [L] → [L, Q] fp32.

    Args:
        model: With memory.
        texts: Token ids of any lengths.
    """
    return _of_tokens(model, texts, lambda query: query.float())


def slots_of(model: PreTrainedModel, queries: Tensor) -> Tensor:
    """Return the slots that queries find, the best first: [n, Q] → int64 [n, K]."""
    layer = memory_layers_of(model)[0]
    weight = layer.query.proj.weight
    with torch.no_grad():
        scores, slots = layer.keys(layer.query.split(queries.to(weight)))
    order = scores[:, 0].argsort(-1, descending=True)
    return slots[:, 0].gather(1, order).long().cpu()


def speaks_at(model: PreTrainedModel, texts: Sequence[Tensor]) -> list[Tensor]:
    """Return at which tokens of texts the memory speaks: for each [L] → bool [L].

    Args:
        model: With memory that stores written rows.
        texts: Token ids of any lengths.
    """
    return [slots >= 0 for slots in slots_at(model, texts)]


def slots_at(model: PreTrainedModel, texts: Sequence[Tensor]) -> list[Tensor]:
    """Return the slot that each token of texts reads, -1 where the memory is silent: [L] int64.

    Args:
        model: With memory that stores written rows.
        texts: Token ids of any lengths.
    """
    table: Any = memory_layers_of(model)[0].values

    def read(query: Tensor) -> Tensor:
        rows, speaks = table.nearest(query)
        # Of a table without rows none can be taken.
        slots = torch.full_like(rows, -1)
        slots[speaks] = table.slots[rows[speaks]]
        return slots

    return _of_tokens(model, texts, read)


def _of_tokens(
    model: PreTrainedModel,
    texts: Sequence[Tensor],
    look: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    layer = memory_layers_of(model)[0]
    order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
    found: dict[int, Tensor] = {}
    for low in range(0, len(order), 2 * _BATCH):
        numbers = order[low : low + 2 * _BATCH]
        longest = len(texts[numbers[-1]])
        # Behind the texts, where a causal model does not look from within them.
        padded = torch.stack(
            [torch.nn.functional.pad(texts[n], (0, longest - len(texts[n]))) for n in numbers]
        )
        hidden = hidden_at_lookup(model, padded)
        with torch.no_grad():
            query = layer.query(hidden.flatten(0, 1)).flatten(1)
            rows = look(query).cpu().unflatten(0, (len(numbers), longest))
        found |= {n: row[: len(texts[n])] for n, row in zip(numbers, rows, strict=True)}
    return [found[n] for n in range(len(texts))]


def residual_size(model: PreTrainedModel, config: MemoryConfig, tokens: Tensor) -> float:
    """Return the root mean square of the entries of hidden states where the memory adds to them.

    Args:
        model: With or without memory.
        config: Of the memory.
        tokens: Text, [rows, L].
    """
    block = family_of(model).blocks_of(backbone_of(model))[min(config.layers)]
    caught: list[Any] = []
    hook = block.register_forward_hook(lambda _module, _inputs, output: caught.append(output))
    try:
        with torch.no_grad():
            backbone_of(model)(input_ids=tokens[:4].to(model.device), use_cache=False)
    finally:
        hook.remove()
    hidden = caught[0][0] if isinstance(caught[0], tuple) else caught[0]
    return float(hidden[:, SKIPPED:].float().square().mean().sqrt())


@contextmanager
def _stopping(layer: MemoryLayer) -> Generator[list[Tensor]]:
    caught: list[Tensor] = []

    def catch(module: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        del module
        caught.append(inputs[0].detach())
        raise _LookedUp

    hook = layer.register_forward_pre_hook(catch)
    try:
        yield caught
    finally:
        hook.remove()
