"""What a layer is: MemoryConfig, and MoeConfig for the mixtures of experts it is compared with."""

from memory_layers.config.memory import MemoryConfig, MemorySizes
from memory_layers.config.moe import MoeConfig

__all__ = ["MemoryConfig", "MemorySizes", "MoeConfig"]
