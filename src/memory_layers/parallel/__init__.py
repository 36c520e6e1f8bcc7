"""Memory parallel on torch.distributed: value tables by width, the rest by FSDP2 and DTensor."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from memory_layers.parallel.config import Layout, ParallelConfig

if TYPE_CHECKING:
    from memory_layers.parallel.apply import parallelize, shard_memory
    from memory_layers.parallel.mesh import Meshes, make_meshes

__all__ = ["Layout", "Meshes", "ParallelConfig", "make_meshes", "parallelize", "shard_memory"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    # They need torch and transformers, which a configuration does not.
    home = "mesh" if name in ("Meshes", "make_meshes") else "apply"
    if name in __all__:
        return getattr(import_module(f"memory_layers.parallel.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
