"""The memory layer, one file a step of its data flow. Open memory.py first."""

from memory_layers.layers.keys import fuse_for_inference
from memory_layers.layers.memory import MemoryBeside, MemoryFollower, MemoryLayer
from memory_layers.layers.values import ValueTable
from memory_layers.layers.written import WrittenTable

__all__ = [
    "MemoryBeside", "MemoryFollower", "MemoryLayer", "ValueTable", "WrittenTable",
    "fuse_for_inference",
]  # fmt: skip
