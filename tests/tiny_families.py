"""A tiny model of every family that can get memory: three blocks of width 16."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from memory_layers.models.families import FAMILIES

FAMILY_NAMES = [family.model_type for family in FAMILIES]
IDS = torch.arange(18).view(2, 9) * 7 % 40

_SIZES = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 40,
    "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "attention_dropout": 0.0,
}  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "gpt_neox": {"intermediate_size": 24},
}


def tiny_model(name: str, dtype: torch.dtype = torch.float32, **changes: object) -> PreTrainedModel:
    """An untrained causal language model of a family, in eval mode, always the same."""
    own = _OWN.get(name, {"intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8})
    config = AutoConfig.for_model(name, **{**_SIZES, **own, **changes})
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
