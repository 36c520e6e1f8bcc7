"""Trainable key-value memory for language models. Importing this needs torch alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from memory_layers.common.version import __version__ as __version__
from memory_layers.config import MemoryConfig, MoeConfig
from memory_layers.layers import MemoryLayer, PeerLayer, ValueTable
from memory_layers.ops.find import product_key_topk
from memory_layers.ops.read import gather_dot, gather_sum
from memory_layers.ops.write import row_adagrad_, row_adamw_, row_sgd_
from memory_layers.optim import MemoryAdamW

if TYPE_CHECKING:
    from memory_layers.models import add_experts, add_memory

__all__ = [
    "MemoryAdamW",
    "MemoryConfig",
    "MemoryLayer",
    "MoeConfig",
    "PeerLayer",
    "ValueTable",
    "add_experts",
    "add_memory",
    "gather_dot",
    "gather_sum",
    "product_key_topk",
    "row_adagrad_",
    "row_adamw_",
    "row_sgd_",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    # transformers is loaded when a model is touched, not when the package is.
    if name in ("add_experts", "add_memory"):
        return getattr(import_module("memory_layers.models"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
