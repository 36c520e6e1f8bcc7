"""The tables and memory layers of a model."""

from torch import nn

from memory_layers.layers.memory import MemoryLayer
from memory_layers.layers.values import ValueTable


def find_tables(model: nn.Module) -> dict[str, ValueTable]:
    """Return the value tables of a model by name, each once."""
    return {n: module for n, module in model.named_modules() if isinstance(module, ValueTable)}


def memory_layers_of(model: nn.Module) -> list[MemoryLayer]:
    """Return the memory layers of a model in the order of its blocks."""
    return [module for module in model.modules() if isinstance(module, MemoryLayer)]


def freeze_keys(model: nn.Module) -> None:
    """Freeze all query projections and sub-keys: as a control, or because they are good already.

    Call it before the optimizer is built.
    """
    for layer in memory_layers_of(model):
        layer.query.requires_grad_(False)
        layer.keys.requires_grad_(False)
