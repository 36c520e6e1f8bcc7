"""Batches of keys and values: rows that leave, rows that join, columns that nobody needs.

Rows of a batch are padded on the left, so that all end in the same column.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from memory_layers.common.errors import UserError

# Layers whose tensors are [rows, heads, columns, width], the last columns of all.
KNOWN = (DynamicLayer, DynamicSlidingWindowLayer)


def new_cache(model: PreTrainedModel) -> DynamicCache:
    """Return an empty cache of a model."""
    return DynamicCache(config=model.config.get_text_config(decoder=True))


def cache_argument(model: PreTrainedModel) -> str:
    """Return under which name the model takes a cache.

    Raises:
        UserError: It takes none, or one of its own kind.
    """
    taken = inspect.signature(model.forward).parameters
    for name in ("past_key_values", "cache_params"):
        if name in taken:
            return name
    raise UserError(
        f"{model.config.model_type} models cannot be served: expected one that takes a cache of "
        "transformers, got one that keeps what it has read in its own way. hint: memory-layers "
        "generate takes it"
    )


def can_batch(model: PreTrainedModel) -> bool:
    """Whether rows of unlike length can share a cache: it has keys and values only.

    States of recurrent layers take in the padding.
    """
    return all(type(layer) in KNOWN for layer in new_cache(model).layers)


def select(cache: DynamicCache, rows: list[int], columns: int) -> None:
    """Keep some rows and the last columns, in place.

    Args:
        cache: Of a model that can_batch.
        rows: To keep.
        columns: To keep. All rows have padding only before them.
    """
    index = torch.tensor(rows, dtype=torch.long)
    for layer in _filled(cache):
        for name in ("keys", "values"):
            held: Tensor = getattr(layer, name)
            kept = held.index_select(0, index.to(held.device))
            setattr(layer, name, kept[:, :, max(0, kept.shape[2] - columns) :].contiguous())
        _set_length(layer, columns)


def join(cache: DynamicCache, other: DynamicCache, columns: int) -> None:
    """Add the rows of another cache behind those of one, in place.

    Args:
        cache: Of a model that can_batch.
        other: Of the same model.
        columns: Of the longer one.
    """
    for layer, more in zip(_filled(cache), _filled(other), strict=True):
        for name in ("keys", "values"):
            held, added = getattr(layer, name), getattr(more, name)
            width = max(held.shape[2], added.shape[2])
            setattr(layer, name, torch.cat([_widened(held, width), _widened(added, width)]))
        _set_length(layer, columns)


def _filled(cache: DynamicCache) -> list[Any]:
    # Layers that use the keys of another one have none.
    return [layer for layer in cache.layers if getattr(layer, "is_initialized", False)]


def _set_length(layer: Any, columns: int) -> None:  # noqa: ANN401
    # A window drops columns, and counts all that it has seen.
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = columns


def _widened(held: Tensor, width: int) -> Tensor:
    rows, heads, columns, size = held.shape
    return torch.cat([held.new_zeros(rows, heads, width - columns, size), held], dim=2)
