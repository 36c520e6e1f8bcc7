"""The process groups of a run, made once from a Layout. Next: table.py."""

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from memory_layers.parallel.config import Layout


@dataclass(frozen=True)
class Meshes:
    """The ranks of a run, arranged twice.

    Attributes:
        layout: Sizes.
        dense: Axes replicate, shard, tensor: for all parameters but value tables.
        table: Axes replicas, memory: for value tables. A memory group is consecutive ranks.
    """

    layout: Layout
    dense: DeviceMesh
    table: DeviceMesh

    @property
    def fsdp(self) -> DeviceMesh:
        """The axes over which FSDP2 shards, and replicates if there are replicas."""
        names = ("replicate", "shard") if self.layout.replicate > 1 else "shard"
        return self.dense[names]

    @property
    def reader(self) -> int:
        """Which share of the data this rank reads. Ranks of one tensor group read the same."""
        return dist.get_rank() // self.layout.tensor


def make_meshes(layout: Layout, device_type: str) -> Meshes:
    """Make the process groups of a layout. Every rank must call this.

    Args:
        layout: Sizes that multiply to the world size of the initialised process group.
        device_type: "cpu" or "cuda".
    """
    dense = init_device_mesh(
        device_type,
        (layout.replicate, layout.shard, layout.tensor),
        mesh_dim_names=("replicate", "shard", "tensor"),
    )
    table = init_device_mesh(
        device_type,
        (layout.world // layout.memory, layout.memory),
        mesh_dim_names=("replicas", "memory"),
    )
    return Meshes(layout, dense, table)
