"""MemoryLayer: the whole data flow in five lines. Next: query.py, keys.py, values.py, gate.py.

peer.py has the other kind of layer, whose slots are experts.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from memory_layers.config import MemoryConfig
from memory_layers.layers.gate import build_gate
from memory_layers.layers.keys import ProductKeys
from memory_layers.layers.query import QueryProjection
from memory_layers.layers.values import SinkValue, ValueTable


class MemoryLayer(nn.Module):
    """Find a few of N learned slots for every token, read their rows, gate the sum.

    Stands where a feed-forward block stood, or beside it (arXiv 2412.09764 section 2).

    Args:
        config: Sizes and choices. `layers` and `share_values` concern the model, not this layer.
        model_dim: D.
        owner: Module that holds the table of several layers as `memory_table`. None: the layer
            owns its table.

    Raises:
        ValueError: `config.readout` is that of another class.
    """

    readouts: ClassVar[tuple[str, ...]] = ("values",)

    def __init__(
        self, config: MemoryConfig, model_dim: int, *, owner: nn.Module | None = None
    ) -> None:
        super().__init__()
        if config.readout not in self.readouts:
            raise ValueError(
                f"{type(self).__name__} has readout {' or '.join(self.readouts)}, got "
                f"{config.readout!r}. hint: memory_layers.layers.build_layer picks the class"
            )
        sizes = config.resolved(model_dim)
        half_dim = sizes.key_dim // 2
        self.weighing = config.weighing
        self.query = QueryProjection(model_dim, config.heads, half_dim, norm=config.query_norm)
        self.keys = ProductKeys(
            config.heads, config.sub_keys, half_dim, config.top_k, qk_norm=config.qk_norm,
            random_slots=config.random_slots, sink=config.sink_slot,
        )  # fmt: skip
        self.sink = SinkValue(sizes.value_dim, sizes.value_init_std) if config.sink_slot else None
        self.gate = build_gate(
            config.gate, model_dim, sizes.value_dim, zero_init=config.placement == "beside"
        )
        self.train_keys = config.train_keys
        self.freeze_keys()
        if owner is None:
            for name, table in build_tables(config, model_dim).items():
                self.add_module(name, table)
        # The owner is looked up at every call and not registered: the shared table is then one
        # parameter with one name, also after LoRA or a copy has exchanged the module.
        object.__setattr__(self, "_owner", owner)

    def freeze_keys(self) -> None:
        """Keep query and keys from training, unless they are to be trained."""
        if not self.train_keys:
            self.query.requires_grad_(False)
            self.keys.requires_grad_(False)

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
        read = self.read(slots, weights, x)  # [T, V]
        return self.gate(read, x).view(shape)

    def weigh(self, scores: Tensor) -> Tensor:
        """Weights of the scores of a head, which arrive in fp32. Heads are added up."""
        if self.weighing == "softmax":
            return scores.softmax(dim=-1)
        return scores.relu() if self.weighing == "relu" else scores.sigmoid()

    def read(self, slots: Tensor, weights: Tensor, x: Tensor) -> Tensor:
        """[T, H, K] slots and weights → [T, V]. The sink has one weight more, the last."""
        del x
        if self.sink is None:
            return self.values(slots.flatten(1), weights.flatten(1))
        weights, on_sink = weights.split([slots.shape[-1], 1], -1)
        return self.sink(self.values(slots.flatten(1), weights.flatten(1)), on_sink[..., 0])


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


def build_tables(config: MemoryConfig, model_dim: int) -> dict[str, ValueTable]:
    """Build the tables that a config asks for, by the names that their owner gives them.

    Args:
        config: Sizes and choices.
        model_dim: D.

    Returns:
        `memory_table`, the values [N, V], and for experts `expert_table`, their u [N, D].
    """
    sizes = config.resolved(model_dim)
    dtypes = {"model": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
    shapes = {"memory_table": (sizes.value_dim, sizes.value_init_std)}
    if config.readout != "values":
        shapes["expert_table"] = (model_dim, model_dim**-0.5)
    return {
        name: ValueTable(
            config.slots, width, init_std=std, dtype=dtypes[config.value_dtype]
        )
        for name, (width, std) in shapes.items()
    }  # fmt: skip
