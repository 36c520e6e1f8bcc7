"""Step 3: slots and weights → read, one class for each readout of MemoryConfig. Next: gate.py.

values.py has the tables that they read.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from memory_layers.config import MemoryConfig
from memory_layers.layers.values import ValueTable
from memory_layers.layers.written import WrittenTable


class ValueRead(nn.Module):
    """read = sum_j weights[j] * v[slots[j]]: rows of the value table v, added up.

    Args:
        layer: The layer whose step this is. What is read, it or its owner has.
    """

    table_names: ClassVar[tuple[str, ...]] = ("memory_table",)

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        # Not registered, as it would contain itself.
        object.__setattr__(self, "_layer", layer)

    @property
    def layer(self) -> Any:  # noqa: ANN401
        """The layer whose step this is."""
        return self._layer

    def forward(self, slots: Tensor, weights: Tensor, x: Tensor) -> Tensor:
        """[T, H, K] slots and weights, [T, D] → [T, V]."""
        return self.layer.values(slots.flatten(1), weights.flatten(1))


class SinkRead(ValueRead):
    """The sum of rows and of the sink's value, whose weight is the last of each head."""

    def forward(self, slots: Tensor, weights: Tensor, x: Tensor) -> Tensor:
        """[T, H, K] slots, [T, H, K + 1] weights, [T, D] → [T, V]."""
        weights, on_sink = weights.split([slots.shape[-1], 1], -1)
        return self.layer.sink(super().forward(slots, weights, x), on_sink[..., 0])


class NearestRead(ValueRead):
    """read = v[r] of the written row r whose query is nearest, 0 if it is not within its radius."""

    def forward(self, slots: Tensor, weights: Tensor, x: Tensor) -> Tensor:
        """[T, H, K] slots and weights, which are not needed, and [T, D] → [T, V]."""
        rows, near = self.layer.values.nearest(self.layer.query(x).flatten(1))
        return self.layer.values(rows[:, None], near.to(weights.dtype)[:, None])


class ExpertRead(ValueRead):
    """read = sum_j weights[j] * gelu(u[slots[j]] . x) * v[slots[j]]  (PEER, arXiv 2407.04153).

    Each slot is a feed-forward block of one neuron. The v are the value table, the u a second
    table, [N, D]. The layer of the paper has gate "none".
    """

    table_names = ("memory_table", "expert_table")

    def forward(self, slots: Tensor, weights: Tensor, x: Tensor) -> Tensor:
        """[T, H, K] slots and weights, [T, D] → [T, V]. Activations are fp32, as weights are."""
        slots = slots.flatten(1)
        hidden = self.activation(self.layer.experts.dot(slots, x))  # [T, J]
        return self.layer.values(slots, weights.flatten(1) * hidden)

    def activation(self, hidden: Tensor) -> Tensor:
        """What an expert makes of its product with x."""
        return F.gelu(hidden)


class LinearExpertRead(ExpertRead):
    """Experts without gelu (the values of UltraMemV2, arXiv 2508.18756)."""

    def activation(self, hidden: Tensor) -> Tensor:
        """Return the product as it is."""
        return hidden


class SinkValue(nn.Module):
    """The value that every token reads beside those of its slots. It is in no table.

    Args:
        value_dim: V.
        init_std: Standard deviation of the initial value.
    """

    def __init__(self, value_dim: int, init_std: float) -> None:
        super().__init__()
        self.init_std = init_std
        self.weight = nn.Parameter(torch.empty(value_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the value as those of a table."""
        nn.init.normal_(self.weight, std=self.init_std)

    def forward(self, read: Tensor, weights: Tensor) -> Tensor:
        """Add the value to [T, V] with [T, H] weights, of all heads."""
        return read + weights.sum(1, keepdim=True) * self.weight


def build_read(config: MemoryConfig, model_dim: int, layer: nn.Module) -> ValueRead:
    """Build the third step of a layer of width D.

    Args:
        config: Sizes and choices.
        model_dim: D.
        layer: Gets the value of a sink as `sink`, the name that saved models have for it.
    """
    if config.sink_slot:
        sizes = config.resolved(model_dim)
        layer.add_module("sink", SinkValue(sizes.value_dim, sizes.value_init_std))
        return SinkRead(layer)
    if config.match == "nearest":
        return NearestRead(layer)
    classes = {"values": ValueRead, "experts": ExpertRead, "linear_experts": LinearExpertRead}
    return classes[config.readout](layer)


def build_tables(
    config: MemoryConfig,
    model_dim: int,
    dtype: torch.dtype | None = None,
    written: int = 0,
) -> dict[str, ValueTable]:
    """Build the tables that a config asks for, by the names that their owner gives them.

    Args:
        config: Sizes and choices.
        model_dim: D.
        dtype: Storage type of the rows. None: torch's default.
        written: Number of rows that are written, where only these are stored.

    Returns:
        `memory_table`, the values [N, V], and for experts `expert_table`, their u [N, D].
    """
    sizes = config.resolved(model_dim)
    parts = len(config.layers) if config.lookup == "first" else 1
    if config.match == "nearest":
        query_dim = config.heads * sizes.key_dim
        width = sizes.value_dim * parts
        table = WrittenTable(config.num_slots, width, query_dim, written, dtype=dtype)
        return {"memory_table": table}
    shapes = {"memory_table": (sizes.value_dim * parts, sizes.value_init_std)}
    if config.readout != "values":
        shapes["expert_table"] = (model_dim, model_dim**-0.5)
    return {
        name: ValueTable(config.num_slots, width, init_std=std, dtype=dtype)
        for name, (width, std) in shapes.items()
    }
