"""PeerLayer: each slot is a feed-forward block of one neuron. Next: values.py, for both reads.

Also `build_layer`, which picks the class of a memory layer.
"""

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from memory_layers.config import MemoryConfig
from memory_layers.layers.memory import MemoryLayer
from memory_layers.layers.values import ValueTable


class PeerLayer(MemoryLayer):
    """Find a few of N experts for every token, and add up what they make of it.

    read = sum_j weights[j] * gelu(u[slots[j]] . x) * v[slots[j]]    (PEER, arXiv 2407.04153)

    "linear_experts" have no gelu (the values of UltraMemV2, arXiv 2508.18756). The v are the value
    table of the layer or its owner, the u a second table there, `expert_table`. The layer of the
    paper has gate "none".

    Args:
        config: Sizes and choices, with a `readout` of experts.
        model_dim: D.
        owner: As for MemoryLayer, with both tables.
    """

    readouts: ClassVar[tuple[str, ...]] = ("experts", "linear_experts")

    def __init__(
        self, config: MemoryConfig, model_dim: int, *, owner: nn.Module | None = None
    ) -> None:
        super().__init__(config, model_dim, owner=owner)
        self.is_linear = config.readout == "linear_experts"

    @property
    def experts(self) -> ValueTable:
        """The table of the u, [N, D]."""
        owner: Any = self if self._owner is None else self._owner
        return owner.expert_table

    def read(self, slots: Tensor, weights: Tensor, x: Tensor) -> Tensor:
        """[T, H, K] slots and weights, [T, D] → [T, V]. Activations are fp32, as weights are."""
        slots = slots.flatten(1)
        hidden = self.experts.dot(slots, x)  # [T, J]
        hidden = hidden if self.is_linear else F.gelu(hidden)
        return self.values(slots, weights.flatten(1) * hidden)


def build_layer(
    config: MemoryConfig, model_dim: int, owner: nn.Module | None = None
) -> MemoryLayer:
    """Build the layer that a config asks for.

    Args:
        config: Sizes and choices.
        model_dim: D.
        owner: Module that holds the tables of several layers. None: the layer owns its tables.
    """
    layer = MemoryLayer if config.readout in MemoryLayer.readouts else PeerLayer
    return layer(config, model_dim, owner=owner)
