"""Models of a preset, untrained, and the baseline that is sized after one."""

from dataclasses import replace

import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from memory_layers.config import MemoryConfig, MoeConfig
from memory_layers.config.presets import Preset
from memory_layers.layers import MemoryLayer
from memory_layers.models.surgery import add_experts, add_memory


def paper_moe(preset: Preset, sub_keys: int = 1024) -> MoeConfig:
    """Return the paper's MoE: the fewest full-size experts with more parameters than `memory`.

    In all blocks, with expert choice. An even number, as all of the paper's are (16, 8, 6, 4),
    two of which are one more than the fewest. Routers are not counted.

    Args:
        preset: The base model.
        sub_keys: M of the memory whose total counts.
    """
    config = preset.to_config()
    mlp = 3 * preset.hidden_size * config.intermediate_size
    with torch.device("meta"):
        layer = MemoryLayer(preset.memory(sub_keys), preset.hidden_size)
    more = sum(parameter.numel() for parameter in layer.parameters()) - mlp
    # One is there already. Then as many as do not suffice, and one.
    fewest = 2 + max(0, more) // (preset.layers * mlp)
    return MoeConfig(routing="expert_choice", experts=fewest + fewest % 2)


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
