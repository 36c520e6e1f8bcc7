"""Memory parallel on torch.distributed: value tables by width, the rest by FSDP2 and DTensor."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from memory_layers.parallel.config import Layout, ParallelConfig
from memory_layers.parallel.mesh import Meshes, make_meshes

if TYPE_CHECKING:
    from memory_layers.parallel.apply import parallelize, shard_memory

__all__ = ["Layout", "Meshes", "ParallelConfig", "make_meshes", "parallelize", "shard_memory"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    # Both need transformers, which a configuration does not.
    if name in ("parallelize", "shard_memory"):
        return getattr(import_module("memory_layers.parallel.apply"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
