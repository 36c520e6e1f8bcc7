"""MemoryLayer: the whole data flow in five lines. Next: query.py, keys.py, read.py, gate.py."""

import copy
from typing import Any, Self

import torch
from torch import Tensor, nn

from memory_layers.config import MemoryConfig
from memory_layers.layers.gate import build_gate
from memory_layers.layers.keys import build_keys
from memory_layers.layers.query import build_query
from memory_layers.layers.read import build_read, build_tables
from memory_layers.layers.values import ValueTable


class MemoryLayer(nn.Module):
    """Find a few of N learned slots for every token, read their rows, gate the sum.

    Stands where a feed-forward block stood, or beside it (arXiv 2412.09764 section 2).

    Args:
        config: Sizes and choices. `layers` and `share_values` concern the model, not this layer.
        model_dim: D.
        owner: Module that holds the tables of several layers, as build_tables names them. None:
            the layer owns its tables.
        value_dtype: Storage type of tables of its own. None: torch's default.
    """

    def __init__(
        self,
        config: MemoryConfig,
        model_dim: int,
        *,
        owner: nn.Module | None = None,
        value_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weighing = config.weighing
        # What is read here is for this layer and those that follow it, side by side.
        self.parts = len(config.layers) if config.lookup == "first" else 1
        self.for_followers: tuple[Tensor, ...] = ()
        self.query = build_query(config, model_dim)
        self.keys = build_keys(config, model_dim)
        self.read = build_read(config, model_dim, self)
        self.gate = build_gate(config, model_dim)
        if owner is None:
            for name, table in build_tables(config, model_dim, value_dtype).items():
                self.add_module(name, table)
        # The owner is looked up at every call and not registered: the shared table is then one
        # parameter with one name, also after LoRA or a copy has exchanged the module.
        object.__setattr__(self, "_owner", owner)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the layer. Copied without its owner, as PEFT does, it reads the same tables."""
        if self._owner is not None:
            memo.setdefault(id(self._owner), self._owner)
        memo[id(self)] = twin = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    @property
    def values(self) -> ValueTable:
        """The table of values that this layer reads, [N, V]."""
        return self._table("memory_table")

    @property
    def experts(self) -> ValueTable:
        """The table of the u of experts, [N, D], with a readout of experts."""
        return self._table("expert_table")

    @property
    def tables(self) -> list[ValueTable]:
        """All tables that this layer reads."""
        return [self._table(name) for name in self.read.table_names]

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D]. Each token independently."""
        shape, x = x.shape, x.reshape(-1, x.shape[-1])  # [T, D]
        query = self.query(x)  # [T, H, 2, C]
        scores, slots = self.keys(query)  # [T, H, K]
        weights = self.weigh(scores)  # [T, H, K]
        read = self.read(slots, weights, x)  # [T, V]
        if self.parts > 1:
            read, *others = read.chunk(self.parts, -1)
            self.for_followers = tuple(others)
        return self.gate(read, x).view(shape)

    def weigh(self, scores: Tensor) -> Tensor:
        """Weights of the scores of a head, which arrive in fp32. Heads are added up."""
        if self.weighing == "softmax":
            return scores.softmax(dim=-1)
        return scores.relu() if self.weighing == "relu" else scores.sigmoid()

    def _table(self, name: str) -> ValueTable:
        owner: Any = self if self._owner is None else self._owner
        return getattr(owner, name)


class MemoryFollower(nn.Module):
    """The part of what a memory layer before this one has read that is for this block.

    Args:
        config: Of the memory, with lookup "first".
        model_dim: D.
        leader: The layer that looks up and reads.
        number: Which of the layers after it this one is, counted from 0.
    """

    def __init__(
        self, config: MemoryConfig, model_dim: int, leader: MemoryLayer, number: int
    ) -> None:
        super().__init__()
        self.number = number
        self.gate = build_gate(config, model_dim)
        object.__setattr__(self, "_leader", leader)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D], for the tokens of the last pass of the leader."""
        leader: Any = self._leader
        read: Tensor = leader.for_followers[self.number]
        flat = x.reshape(-1, x.shape[-1])
        return self.gate(read.to(x.device), flat).view(x.shape)


class MemoryBeside(nn.Module):
    """A feed-forward block and a memory layer on the same input, added up.

    Args:
        mlp: The block that was there.
        memory: The layer that joins it. Its output starts at zero.
    """

    def __init__(self, mlp: nn.Module, memory: "MemoryLayer | MemoryFollower") -> None:
        super().__init__()
        self.mlp = mlp
        self.memory = memory

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] → [..., D]."""
        return self.mlp(x) + self.memory(x)
