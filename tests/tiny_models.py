"""The smallest models that have everything: a Llama of three blocks and a memory of 36 slots."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from memory_layers.config import MemoryConfig


def tiny_llama(dtype: torch.dtype = torch.float32, **kwargs: object) -> LlamaForCausalLM:
    """An untrained Llama of three blocks and width 16, in eval mode."""
    config = LlamaConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        vocab_size=40,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM._from_config(config, dtype=dtype, **kwargs).eval()


def tiny_memory(**changes: object) -> MemoryConfig:
    """A memory that fits tiny_llama: 36 slots, read by two blocks."""
    sizes = {"layers": (0, 2), "sub_keys": 6, "heads": 2, "top_k": 3, "value_init_std": 0.5}
    return MemoryConfig(**{**sizes, **changes})
