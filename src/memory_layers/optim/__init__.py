"""Optimizers that step dense parameters and the touched rows of value tables together."""

from memory_layers.optim.memory_adamw import MemoryAdamW

__all__ = ["MemoryAdamW"]
