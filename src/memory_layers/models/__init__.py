"""Models with memory: presets, families, and `add_memory`. Importing this loads transformers.

It also registers the memory models with transformers' Auto classes.
"""

from memory_layers.config.presets import PRESETS, Preset
from memory_layers.layers import fuse_for_inference
from memory_layers.layers.walk import freeze_keys, memory_layers_of
from memory_layers.models.adapters import (
    base_digest,
    freeze_all_but_memory,
    load_memory,
    patch_of,
    save_memory,
)
from memory_layers.models.classes import backbone_of, register_families
from memory_layers.models.merging import merge_patches
from memory_layers.models.patches import Patch
from memory_layers.models.patching import apply_patch, record_teaching, revert_patch
from memory_layers.models.presets import build_model
from memory_layers.models.pretrained import resolve_model
from memory_layers.models.surgery import add_experts, add_memory, remove_memory
from memory_layers.models.teachings import Fact, Teaching

register_families()

__all__ = [
    "PRESETS", "Fact", "Patch", "Preset", "Teaching", "add_experts", "add_memory", "apply_patch",
    "backbone_of", "base_digest", "build_model", "freeze_all_but_memory", "freeze_keys",
    "fuse_for_inference", "load_memory", "memory_layers_of", "merge_patches", "patch_of",
    "record_teaching", "remove_memory", "resolve_model", "revert_patch", "save_memory",
]  # fmt: skip
