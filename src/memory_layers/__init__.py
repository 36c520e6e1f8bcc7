"""Trainable key-value memory for language models. Importing this loads nothing, a name loads torch.

Names of models (`add_memory`, `add_experts`) load transformers too.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from memory_layers.common.version import __version__ as __version__

if TYPE_CHECKING:
    from memory_layers.config import MemoryConfig, MoeConfig
    from memory_layers.layers import MemoryLayer, ValueTable, fuse_for_inference
    from memory_layers.models import add_experts, add_memory
    from memory_layers.ops.find import product_key_topk
    from memory_layers.ops.read import gather_dot, gather_sum
    from memory_layers.ops.write import row_step_
    from memory_layers.optim import MemoryAdamW

__all__ = [
    "MemoryAdamW",
    "MemoryConfig",
    "MemoryLayer",
    "MoeConfig",
    "ValueTable",
    "add_experts",
    "add_memory",
    "fuse_for_inference",
    "gather_dot",
    "gather_sum",
    "product_key_topk",
    "row_step_",
]

# Where each name is imported from when it is first touched: as above, for the interpreter.
_HOMES = {
    "config": ("MemoryConfig", "MoeConfig"),
    "layers": ("MemoryLayer", "ValueTable", "fuse_for_inference"),
    "models": ("add_experts", "add_memory"),
    "ops.find": ("product_key_topk",),
    "ops.read": ("gather_dot", "gather_sum"),
    "ops.write": ("row_step_",),
    "optim": ("MemoryAdamW",),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"memory_layers.{home}"), name)
    if name == "PeerLayer":
        raise AttributeError('PeerLayer is MemoryLayer with MemoryConfig(readout="experts")')
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
