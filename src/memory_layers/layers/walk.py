"""The tables and memory layers of a model."""

from torch import nn

from memory_layers.layers.memory import MemoryLayer
from memory_layers.layers.values import ValueTable


def find_tables(model: nn.Module) -> dict[str, ValueTable]:
    """Return the value tables of a model by name, each once."""
    return {n: module for n, module in model.named_modules() if isinstance(module, ValueTable)}


def find_layers(model: nn.Module) -> dict[str, MemoryLayer]:
    """Return the memory layers of a model by name."""
    return {n: module for n, module in model.named_modules() if isinstance(module, MemoryLayer)}
