"""Which slots are read: share used, distance from uniform, histogram of reads."""

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from memory_layers.layers.walk import memory_layers_of


class SlotUsage:
    """Count the reads of every slot while it is attached to a model.

    Slots drawn at random in training are not counted: they are not what the model has found.
    Layers that share a table share the counts. Tables of their own are counted apart and listed
    one after the other.

    Args:
        model: A model with memory layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = memory_layers_of(model)
        tables = {id(layer.values): layer.values for layer in self._layers}
        self._counts = {
            key: torch.zeros(len(table.weight), dtype=torch.int64) for key, table in tables.items()
        }

    @contextmanager
    def watch(self) -> Generator["SlotUsage"]:
        """Count all reads inside a `with` block."""
        handles = [
            layer.keys.register_forward_hook(self._hook(id(layer.values))) for layer in self._layers
        ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, key: int) -> Any:  # noqa: ANN401
        def count(keys: Any, _inputs: tuple, output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
            slots = output[1][..., : keys.top_k].detach().flatten().cpu()
            self._counts[key].index_add_(0, slots, torch.ones_like(slots, dtype=torch.int64))

        return count

    @property
    def counts(self) -> Tensor:
        """[N] reads of every slot so far, all tables one after the other."""
        return torch.cat([torch.zeros(0, dtype=torch.int64), *self._counts.values()])

    @property
    def slots(self) -> int:
        """N, of all tables."""
        return sum(map(len, self._counts.values()))

    def take_up(self, counts: Tensor) -> None:
        """Continue from `counts` of another SlotUsage of this model."""
        own = list(self._counts.values())
        for mine, theirs in zip(own, counts.split([len(c) for c in own]), strict=True):
            mine.copy_(theirs)

    def reset(self) -> None:
        """Set all counts to 0."""
        for counts in self._counts.values():
            counts.zero_()


def used_share(counts: Tensor) -> float:
    """Return the share of slots read at least once.

    Args:
        counts: [N] reads of every slot.
    """
    return float((counts > 0).double().mean())


def summarize_usage(counts: Tensor) -> dict[str, Any]:
    """Return plain numbers for reports.

    Args:
        counts: [N] reads of every slot.

    Returns:
        slots: N.
        used_share: Share of slots read at least once.
        kl_to_uniform: sum p log(p N) over the slots, in nats. 0 when all are read alike,
            log N when one slot is read alone.
        histogram, histogram_edges: Slots by number of reads: bin b counts the slots with
            edges[b] <= reads < edges[b + 1].
    """
    counts = counts.double()
    share = counts / counts.sum().clamp(min=1)
    read = share[share > 0]
    top = int(counts.max()) if len(counts) else 0
    edges = [0] + [2**power for power in range(math.ceil(math.log2(top + 1)) + 1)]
    bins = torch.bucketize(counts, torch.tensor(edges[1:], dtype=torch.float64), right=True)
    return {
        "slots": len(counts),
        "used_share": used_share(counts),
        "kl_to_uniform": float((read * (read * len(counts)).log()).sum()),
        "histogram": torch.bincount(bins, minlength=len(edges) - 1)[: len(edges) - 1].tolist(),
        "histogram_edges": edges,
    }
