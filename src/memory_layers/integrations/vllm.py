"""What vLLM calls in each of its processes: the entry point of the group `vllm.general_plugins`.

vLLM's Transformers backend then finds our classes as it finds those of transformers. It builds the
backbone on the meta device, exchanges linear maps and attention, and loads weights by name.
"""

import transformers

from memory_layers.models.classes import memory_classes, register_families


def register() -> None:
    """Make transformers, and so vLLM, know every family with memory. May be called again."""
    for family in register_families():
        for cls in memory_classes(family).by_part().values():
            setattr(transformers, cls.__name__, cls)
