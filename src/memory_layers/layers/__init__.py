"""The memory layer, one file a step of its data flow. Open memory.py first."""

from memory_layers.layers.keys import fuse_for_inference
from memory_layers.layers.memory import MemoryBeside, MemoryLayer
from memory_layers.layers.values import ValueTable

__all__ = ["MemoryBeside", "MemoryLayer", "ValueTable", "fuse_for_inference"]
