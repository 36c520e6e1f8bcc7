"""Base models, memories and baselines of the paper, and tiny ones for a laptop.

The shapes reproduce the parameter totals printed in arXiv 2412.09764 (tests/models). The paper
prints no head counts: heads of width 64 are ours and change no total.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from memory_layers.config import MemoryConfig, MoeConfig
from memory_layers.layers import build_layer
from memory_layers.models.surgery import add_experts, add_memory


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Shape of a Llama-style base model.

    Attributes:
        hidden_size: D.
        layers: Blocks.
        heads: Attention heads.
        kv_heads: Heads of keys and values, fewer than `heads` for grouped-query attention.
        mlp_size: Hidden width of the feed-forward blocks. None: 256 * ceil(8/3 D / 256), as Llama.
        vocab_size: Tokens.
        tie_embeddings: Input and output embeddings are one matrix.
        max_length: Longest sequence, in tokens.
        rope_theta: Base of the rotary position embedding.
        init_std: Standard deviation of the initial weights. None: 0.02.
        memory_stride: Distance between memory layers of Memory+: three, centred.
    """

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int | None = None
    mlp_size: int | None = None
    vocab_size: int = 32_000
    tie_embeddings: bool = False
    max_length: int = 4096
    rope_theta: float = 500_000.0
    init_std: float | None = None
    memory_stride: int = 8

    def to_config(self) -> LlamaConfig:
        """Return the shape as a transformers config."""
        mlp_size = self.mlp_size or 256 * -(-8 * self.hidden_size // (3 * 256))
        return LlamaConfig(
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads or self.heads,
            intermediate_size=mlp_size,
            vocab_size=self.vocab_size,
            tie_word_embeddings=self.tie_embeddings,
            max_position_embeddings=self.max_length,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            initializer_range=self.init_std or 0.02,
        )

    def memory_plus(self, sub_keys: int = 1024) -> MemoryConfig:
        """Memory+ as in the paper: three layers, centred, one shared table, no qk-norm.

        Args:
            sub_keys: M, for M * M slots.
        """
        first = (self.layers - 2 * self.memory_stride) // 2
        layers = tuple(first + i * self.memory_stride for i in range(3))
        return MemoryConfig(layers=layers, sub_keys=sub_keys, qk_norm=False)

    def memory(self, sub_keys: int = 1024) -> MemoryConfig:
        """The paper's plain "Memory": the middle layer, key width 256, no gate, no qk-norm.

        Args:
            sub_keys: M, for M * M slots.
        """
        return MemoryConfig(
            layers=(self.layers // 2,), sub_keys=sub_keys, key_dim=256, gate="none", qk_norm=False
        )

    def peer(self, sub_keys: int = 768) -> MemoryConfig:
        """The paper's PEER: its "Memory" with one-neuron experts, two vectors each, for values.

        Args:
            sub_keys: M, for M * M experts.
        """
        return replace(self.memory(sub_keys), readout="experts")

    def moe(self, sub_keys: int = 1024) -> MoeConfig:
        """The paper's MoE: the fewest full-size experts whose total is above that of `memory`.

        In all blocks, with expert choice. An even number, as all of the paper's are (16, 8, 6, 4),
        two of which are one more than the fewest. Routers are not counted.

        Args:
            sub_keys: M of the memory whose total counts.
        """
        config = self.to_config()
        mlp = 3 * self.hidden_size * config.intermediate_size
        with torch.device("meta"):
            layer = build_layer(self.memory(sub_keys), self.hidden_size, None)
        more = sum(parameter.numel() for parameter in layer.parameters()) - mlp
        # One is there already. Then as many as do not suffice, and one.
        fewest = 2 + max(0, more) // (self.layers * mlp)
        return MoeConfig(routing="expert_choice", experts=fewest + fewest % 2)


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "tiny": Preset(
            hidden_size=64, layers=4, heads=4, mlp_size=172, vocab_size=2048,
            tie_embeddings=True, max_length=256, rope_theta=10_000.0, memory_stride=1,
        ),
        "small": Preset(
            hidden_size=256, layers=6, heads=4, vocab_size=8192,
            tie_embeddings=True, max_length=512, rope_theta=10_000.0, memory_stride=2,
        ),
        "134m": Preset(hidden_size=768, layers=12, heads=12, memory_stride=4),
        "373m": Preset(hidden_size=1024, layers=24, heads=16),
        "720m": Preset(hidden_size=1536, layers=22, heads=24),
        "1.3b": Preset(hidden_size=2048, layers=22, heads=32),
        "8b": Preset(
            hidden_size=4096, layers=32, heads=32, kv_heads=8, mlp_size=14_336,
            vocab_size=128_256, max_length=8192,
        ),
    }
)  # fmt: skip


def build_model(
    preset: Preset,
    memory: MemoryConfig | None = None,
    moe: MoeConfig | None = None,
    *,
    vocab_size: int | None = None,
) -> PreTrainedModel:
    """Build an untrained model, with memory or experts if asked for.

    Args:
        preset: The base model.
        memory: Memory layers to add. None: a dense model.
        moe: Mixtures of experts to put in. Not together with `memory`.
        vocab_size: Tokens, if not the preset's.
    """
    if vocab_size is not None:
        preset = replace(preset, vocab_size=vocab_size)
    model = LlamaForCausalLM(preset.to_config())
    model = model if memory is None else add_memory(model, memory)
    return model if moe is None else add_experts(model, moe)
