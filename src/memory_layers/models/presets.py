"""Models of a preset, untrained."""

from dataclasses import replace

import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from memory_layers.config import MemoryConfig, MoeConfig
from memory_layers.config.presets import Preset
from memory_layers.models.surgery import add_experts, add_memory


def build_model(
    preset: Preset,
    memory: MemoryConfig | None = None,
    moe: MoeConfig | None = None,
    *,
    vocab_size: int | None = None,
    value_dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """Build an untrained model, with memory or experts if asked for.

    Args:
        preset: The base model.
        memory: Memory layers to add. None: a dense model.
        moe: Mixtures of experts to put in. Not together with `memory`.
        vocab_size: Tokens, if not the preset's.
        value_dtype: Storage type of the value tables, as for `add_memory`.
    """
    if vocab_size is not None:
        preset = replace(preset, vocab_size=vocab_size)
    model = LlamaForCausalLM(preset.to_config())
    model = model if memory is None else add_memory(model, memory, value_dtype=value_dtype)
    return model if moe is None else add_experts(model, moe)
