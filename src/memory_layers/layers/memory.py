"""MemoryLayer: the whole data flow in five lines. Next: query.py, keys.py, values.py, gate.py."""

from typing import Any

import torch
from torch import Tensor, nn

from memory_layers.config import MemoryConfig
from memory_layers.layers.gate import build_gate
from memory_layers.layers.keys import ProductKeys
from memory_layers.layers.query import QueryProjection
from memory_layers.layers.values import ValueTable


class MemoryLayer(nn.Module):
    """Find a few of N learned slots for every token, read their rows, gate the sum.

    Stands where a feed-forward block stood, or beside it (arXiv 2412.09764 section 2).

    Args:
        config: Sizes and choices. `layers` and `share_values` concern the model, not this layer.
        model_dim: D.
        owner: Module that holds the table of several layers as `memory_table`. None: the layer
            owns its table.
    """

    def __init__(
        self, config: MemoryConfig, model_dim: int, *, owner: nn.Module | None = None
    ) -> None:
        super().__init__()
        sizes = config.resolved(model_dim)
        half_dim = sizes.key_dim // 2
        self.query = QueryProjection(model_dim, config.heads, half_dim)
        self.keys = ProductKeys(
            config.heads, config.sub_keys, half_dim, config.top_k, qk_norm=config.qk_norm
        )
        self.gate = build_gate(
            config.gate, model_dim, sizes.value_dim, zero_init=config.placement == "beside"
        )
        if owner is None:
            self.memory_table = build_table(config, model_dim)
        # The owner is looked up at every call and not registered: the shared table is then one
        # parameter with one name, also after LoRA or a copy has exchanged the module.
        object.__setattr__(self, "_owner", owner)

    @property
    def values(self) -> ValueTable:
        """The table this layer reads."""
        owner: Any = self if self._owner is None else self._owner
        return owner.memory_table

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D]. Each token independently."""
        shape, x = x.shape, x.reshape(-1, x.shape[-1])  # [T, D]
        query = self.query(x)  # [T, H, 2, C]
        scores, slots = self.keys(query)  # [T, H, K]
        weights = self.weigh(scores)  # [T, H, K]
        read = self.values(slots.flatten(1), weights.flatten(1))  # [T, V]
        return self.gate(read, x).view(shape)

    def weigh(self, scores: Tensor) -> Tensor:
        """Softmax over the K scores of a head, which arrive in fp32. Heads are added up."""
        return scores.softmax(dim=-1)


class MemoryBeside(nn.Module):
    """A feed-forward block and a memory layer on the same input, added up.

    Args:
        mlp: The block that was there.
        memory: The layer that joins it. Its output starts at zero.
    """

    def __init__(self, mlp: nn.Module, memory: MemoryLayer) -> None:
        super().__init__()
        self.mlp = mlp
        self.memory = memory

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D]."""
        return self.mlp(x) + self.memory(x)


def build_table(config: MemoryConfig, model_dim: int) -> ValueTable:
    """Build the value table that a config asks for, for a model of width D."""
    sizes = config.resolved(model_dim)
    dtypes = {"model": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    return ValueTable(
        config.slots,
        sizes.value_dim,
        init_std=sizes.value_init_std,
        grad_mode=config.grad_mode,
        dtype=dtypes[config.value_dtype],
    )
