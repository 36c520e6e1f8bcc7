"""What the value tables of a memory take, whether there is room for them, and what would fit."""

import math
import warnings

import psutil
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from memory_layers.common.errors import UserError
from memory_layers.common.text import short_bytes, short_number
from memory_layers.config import MemoryConfig
from memory_layers.layers.walk import find_tables, memory_layers_of
from memory_layers.models.classes import backbone_of

# AdamW keeps two moments of a value, in float32.
_STATE_BYTES = 8
# Of the memory that is free: what a hint leaves for all else.
_SPARED = 0.2


def table_bytes(
    model: PreTrainedModel,
    config: MemoryConfig,
    value_dtype: torch.dtype | None = None,
    *,
    training: bool = False,
) -> int:
    """Return how many bytes the tables of a memory take in a model.

    Args:
        model: That gets the memory.
        config: Of the memory.
        value_dtype: As for `add_memory`.
        training: With the state that MemoryAdamW keeps of all rows by default.
    """
    each = (value_dtype or reference_of(model).dtype).itemsize + _STATE_BYTES * training
    return _numbers(model, config) * each


def largest_sub_keys(
    model: PreTrainedModel,
    config: MemoryConfig,
    room: float,
    value_dtype: torch.dtype | None = None,
    *,
    training: bool = False,
) -> int | None:
    """Return how many sub-keys fit in so many bytes, at most those of the config. None: not even K.

    Args:
        model: That gets the memory.
        config: Of the memory.
        room: Bytes.
        value_dtype: As for `add_memory`.
        training: As for `table_bytes`.
    """
    a_row = table_bytes(model, config, value_dtype, training=training) / config.num_slots
    fitting = min(math.isqrt(int(room / a_row)), config.sub_keys)
    # A multiple of 64, for numbers that are easily remembered.
    fitting -= fitting % 64 if fitting > 64 else 0
    return fitting if fitting >= config.top_k else None


def check_room(
    model: PreTrainedModel,
    config: MemoryConfig,
    value_dtype: torch.dtype | None = None,
    *,
    training: bool = False,
) -> None:
    """Refuse tables that do not fit into the free memory where the model is.

    Args:
        model: That gets the memory.
        config: Of the memory.
        value_dtype: As for `add_memory`.
        training: As for `table_bytes`.

    Raises:
        UserError: There is no room. Says what would fit.
    """
    device = reference_of(model).device
    # A table is drawn on the CPU, and moved.
    for place in dict.fromkeys((torch.device("cpu"), device) if device.type != "meta" else ()):
        state = training and place == device
        need, free = table_bytes(model, config, value_dtype, training=state), _free(place)
        if free is None or need <= free:
            continue
        room = (1 - _SPARED) * free
        fitting = largest_sub_keys(model, config, room, value_dtype, training=state)
        raise UserError(
            f"there is no room for the values of the memory: {config.num_slots:,} slots "
            f"(sub_keys={config.sub_keys}) take {short_bytes(need)}"
            f"{' with the state of the optimizer' if state else ''}, and {short_bytes(free)} are "
            f"free on {place}. hint: "
            + ("take a machine with more memory" if fitting is None else f"sub_keys={fitting} fits")
        )


def warn_of_size(model: PreTrainedModel, config: MemoryConfig) -> None:
    """Say what the tables of a memory take if that is more than the model that they stand in."""
    tables = [table.weight for table in find_tables(model).values()]
    ours = {id(t) for layer in memory_layers_of(model) for t in layer.parameters()}
    ours |= {id(table) for table in tables}
    base = [tensor for tensor in model.parameters() if id(tensor) not in ours]
    size, room = (sum(t.nbytes for t in some) for some in (tables, base))
    # A model on the meta device is one that is only planned, or trained from the start.
    if config.placement != "beside" or size <= room or reference_of(model).is_meta:
        return
    count, others = (sum(t.numel() for t in some) for some in (tables, base))
    fitting = largest_sub_keys(model, config, room, tables[0].dtype)
    warnings.warn(
        f"the memory adds {short_number(count)} parameters to {short_number(others)}: "
        f"{short_bytes(size)}, and {short_bytes(size + count * _STATE_BYTES)} while MemoryAdamW "
        f"trains them. hint: sub_keys={fitting or config.top_k} makes less than the model has",
        stacklevel=3,
    )


def reference_of(model: nn.Module) -> Tensor:
    """Return a parameter whose device and type are those that the model computes in."""
    # Quantised weights are whole numbers, or floating ones of a byte.
    return next(p for p in model.parameters() if p.is_floating_point() and p.itemsize > 1)


def _numbers(model: PreTrainedModel, config: MemoryConfig) -> int:
    """Return how many numbers the tables hold, as build_tables makes them."""
    if config.match == "nearest":
        return 0  # nothing is written yet
    width = backbone_of(model).config.hidden_size
    parts = len(config.layers) if config.lookup == "first" else 1
    a_row = config.resolved(width).value_dim * parts + (width if config.readout != "values" else 0)
    return config.num_slots * a_row * (1 if config.share_values else len(config.layers))


def _free(place: torch.device) -> int | None:
    """Return the free bytes of a device, or None if it does not say."""
    if place.type == "cpu":
        return psutil.virtual_memory().available
    if place.type == "cuda":
        cached = torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)
        return torch.cuda.mem_get_info(place)[0] + cached
    return None
