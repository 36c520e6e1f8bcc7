"""Job: a run and how it is divided among ranks, with the sizes that all formulas need."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from transformers import LlamaConfig

from memory_layers.common.errors import UserError
from memory_layers.config import MemoryConfig, MemorySizes
from memory_layers.parallel.config import Layout
from memory_layers.parallel.tensor import check_divisible
from memory_layers.train.config import RunConfig, check_shares

FP32, BF16, INT32, INT64, FP64 = 4, 2, 4, 8, 8

# Fields of MemoryConfig that change what a layer computes or keeps, and the one value that the
# formulas are written for.
_COVERED: Mapping[str, object] = MappingProxyType(
    {
        "query_norm": "none", "readout": "values", "random_slots": 0, "sink_slot": False,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A run and how it is divided.

    Attributes:
        run: Model, memory, optimizer and batches.
        layout: Sizes of the groups of ranks.
        packed: Rows hold several documents, as in training, so attention has a mask.
        vocab_size: Tokens. None: as `run.data` says.
    """

    run: RunConfig
    layout: Layout
    packed: bool = True
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        """Refuse what the ranks cannot share, and memory layers whose work is not covered."""
        if self.run.moe is not None:
            raise UserError("plan does not cover moe yet. hint: plan the run without it")
        for name, covered in _COVERED.items():
            value = getattr(self.memory, name, covered)
            if value != covered:
                raise UserError(
                    f"plan covers memory.{name} {covered!r}, got {value!r}. hint: plan without it"
                )
        if self.memory is not None and not self.run.optim.train_keys:
            raise UserError("plan covers optim.train_keys true, got false. hint: plan without it")
        check_shares(self.run.train, self.layout)
        check_divisible(self.shape, self.layout.tensor)

    @cached_property
    def shape(self) -> LlamaConfig:
        """The base model."""
        config = self.run.model.to_preset().to_config()
        config.vocab_size = self.vocab
        return config

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.shape.hidden_size // self.shape.num_attention_heads

    @property
    def key_value_dim(self) -> int:
        """Width of the keys, and of the values, of all heads of attention."""
        return self.head_dim * (self.shape.num_key_value_heads or self.shape.num_attention_heads)

    @cached_property
    def vocab(self) -> int:
        """Tokens of the vocabulary."""
        if self.vocab_size is not None:
            return self.vocab_size
        if self.run.data.tokenizer is not None:
            from memory_layers.data.tokenizer import load_tokenizer, vocabulary_size

            return vocabulary_size(load_tokenizer(Path(self.run.data.tokenizer)))
        return self.run.data.vocab_size

    @property
    def memory(self) -> MemoryConfig | None:
        """The memory layers, None for a dense model."""
        return self.run.memory

    @cached_property
    def sizes(self) -> MemorySizes:
        """V and 2 C of the memory layers."""
        assert self.memory is not None
        return self.memory.resolved(self.shape.hidden_size)

    @property
    def checkpointing(self) -> bool:
        """Whether blocks are computed again in the backward pass."""
        return self.run.train.gradient_checkpointing

    @property
    def sharded(self) -> bool:
        """Whether there are several ranks, so that memory_layers.parallel divides the model."""
        return self.layout.world > 1

    @property
    def replicas(self) -> int:
        """Copies of a value table: memory groups."""
        return self.layout.world // self.layout.memory

    @property
    def rows(self) -> int:
        """B, rows of a micro-batch that a rank reads. Ranks of a tensor group read the same."""
        return self.run.train.batch_size // self.layout.readers

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch that a rank reads."""
        return self.rows * self.run.train.seq_len

    @property
    def own_tokens(self) -> int:
        """T, tokens of a micro-batch that a rank takes through a memory layer."""
        return -(-self.tokens // self.layout.tensor)

    @property
    def group_tokens(self) -> int:
        """G * T, tokens that a rank reads on its columns of the table."""
        return self.own_tokens * self.layout.memory

    @property
    def step_tokens(self) -> int:
        """Tokens of a step, all ranks and micro-batches together."""
        train = self.run.train
        return train.batch_size * train.seq_len * train.accumulate

    @property
    def mixed(self) -> bool:
        """Whether matrix products run in bf16 under autocast."""
        return self.run.train.precision == "bf16"

    @property
    def act_bytes(self) -> int:
        """Bytes of a number that a matrix product returns."""
        return BF16 if self.mixed else FP32

    @property
    def table_bytes(self) -> int:
        """Bytes of a number of a value table. Models are built in fp32."""
        return BF16 if self.run.optim.value_dtype == "bfloat16" else FP32

    @property
    def sent_weight_bytes(self) -> int:
        """Bytes of a weight of a read, as gathered. One process keeps the softmax's fp32."""
        is_bf16 = self.sharded and self.run.parallel.weights_dtype == "bfloat16"
        return BF16 if is_bf16 else FP32

    @property
    def read_bytes(self) -> int:
        """Bytes of a number of a read, and of its gradient: the wider of table and weights."""
        return max(self.table_bytes, self.sent_weight_bytes)

    @property
    def columns(self) -> int:
        """Columns of the table that the first ranks of a memory group hold: ceil(V / G)."""
        return -(-self.sizes.value_dim // self.layout.memory)

    @property
    def tables(self) -> int:
        """Value tables of the model."""
        if self.memory is None:
            return 0
        return 1 if self.memory.share_values else len(self.memory.layers)

    @property
    def has_map(self) -> bool:
        """Whether the output of a memory layer passes through a linear map [V, D]."""
        assert self.memory is not None
        narrow = self.sizes.value_dim != self.shape.hidden_size
        return self.memory.gate == "silu" or self.memory.starts_with_zero_map or narrow

    @property
    def needs_row_sums(self) -> bool:
        """Whether a step multiplies the gradient out: for one moment a row over several ranks."""
        is_cut = self.memory is not None and self.columns != self.sizes.value_dim
        return is_cut and self.run.optim.value_state == "row"

    @property
    def reads_of_table(self) -> int:
        """Reads of one table, layers and micro-batches, in a step."""
        assert self.memory is not None
        return len(self.memory.layers) // self.tables * self.run.train.accumulate

    def factor_bytes(self, slot_bytes: int) -> int:
        """Return the bytes of the factors that one read of a table leaves on a rank."""
        assert self.memory is not None
        entries = self.memory.reads * (slot_bytes + self.sent_weight_bytes)
        return self.group_tokens * (entries + self.columns * self.read_bytes)

    def touched_rows(self, reads: int) -> float:
        """Return the distinct rows of a table that so many reads touch."""
        assert self.memory is not None
        entries = reads * self.group_tokens * self.memory.reads
        return distinct_rows(self.memory.num_slots, entries)

    @property
    def stepped_rows(self) -> float:
        """Rows of a table that a step changes: those that any replica has read."""
        return self.touched_rows(self.reads_of_table * self.replicas)

    @property
    def row_state_bytes(self) -> float:
        """Bytes of optimizer state of one row on one rank."""
        optim = self.run.optim
        total = FP32 if optim.value_state == "row" else 2 * self.columns * FP32
        if optim.value_state == "ahead":
            total += INT32 + FP32  # last step and rate of a row
        if self.table_bytes < FP32 and optim.bf16_rows == "master":
            total += self.columns * FP32
        return total + (FP64 if optim.value_weight_decay else 0)  # the decay that a row has had


def distinct_rows(num_slots: int, entries: int) -> float:
    """Return the rows that so many slots name, expected for slots drawn uniformly.

    No other distribution touches more.
    """
    return num_slots * -math.expm1(-entries / num_slots)
