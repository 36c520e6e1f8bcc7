"""Base models, memories and baselines of the paper, and tiny ones for a laptop, as plain sizes.

The shapes reproduce the parameter totals printed in arXiv 2412.09764 (tests/models). The paper
prints no head counts: heads of width 64 are ours and change no total. Next: models/presets.py,
which builds them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from memory_layers.config.memory import MemoryConfig

if TYPE_CHECKING:
    from transformers import LlamaConfig


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

    def to_config(self) -> "LlamaConfig":
        """Return the shape as a transformers config."""
        from transformers import LlamaConfig

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
