"""Memory parallel on torch.distributed: value tables by width, the rest by FSDP2 and DTensor."""

from memory_layers.parallel.config import Layout, ParallelConfig
from memory_layers.parallel.mesh import Meshes, make_meshes

__all__ = ["Layout", "Meshes", "ParallelConfig", "make_meshes"]
