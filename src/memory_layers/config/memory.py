"""MemoryConfig: what a memory layer is, every size and choice checked once, here.

Next: layers/memory.py, the layer that these fields describe.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from memory_layers.common.checks import MOST_WIDE, check_number, check_whole
from memory_layers.common.errors import UserError
from memory_layers.config.blocks import BlocksConfig

Gate = Literal["silu", "sigmoid", "none"]
Placement = Literal["replace", "beside"]
QueryNorm = Literal["none", "batch", "layer"]
Weighing = Literal["softmax", "relu", "sigmoid"]
Readout = Literal["values", "experts", "linear_experts"]
Lookup = Literal["each", "first"]
Match = Literal["slots", "nearest"]

# Slots are numbered in 31 bits.
MOST_SUB_KEYS = 46_340


@dataclass(frozen=True)
class MemorySizes:
    """The sizes of a MemoryConfig that depend on the model.

    Attributes:
        value_dim: V.
        key_dim: 2 * C.
        value_init_std: Standard deviation of the initial values.
    """

    value_dim: int
    key_dim: int
    value_init_std: float


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(BlocksConfig):
    """Memory+ of "Memory Layers at Scale" (arXiv 2412.09764) by default.

    Attributes:
        layers: Indices of the blocks that get a memory layer, counted from 0. A model needs one, a
            MemoryLayer on its own none.
        sub_keys: M, sub-keys per half. The table has N = M * M slots.
        heads: H, independent look-ups per token.
        top_k: K, slots read per head.
        key_dim: Width of a query and of a key, both halves together (2 * C). None: value_dim / 2.
        value_dim: V, width of a value row. None: the model width.
        share_values: One table for all memory layers of the model. False: one table a layer.
        gate: "silu" (Memory+), "sigmoid" (one scalar a token) or "none" (PKM).
        qk_norm: RMS-normalise query halves and sub-keys, with a learned scale.
        query_norm: What the query projection is followed by, before qk_norm: "batch" norm of each
            feature over the tokens (arXiv 1907.05242; on one process alone, and in training of
            more than one token), "layer" norm of each half-query of a head, or "none".
        weighing: What makes weights of the scores of a head: "softmax", or "relu" or "sigmoid" of
            each score (arXiv 2310.10837).
        readout: "values" adds up rows of the table. "experts" takes each slot for a feed-forward
            block of one neuron, gelu(u . x) v (PEER, arXiv 2407.04153), "linear_experts" for
            (u . x) v (the values of UltraMemV2, arXiv 2508.18756). Their u are a second table,
            [N, model width].
        random_slots: Slots drawn uniformly for each token and head, in training alone, that join
            the K selected ones with their true scores. One that is selected too counts twice.
        sink_slot: Let one more key and value, learned for the layer, join the selected slots of
            every token and head.
        placement: "replace" the feed-forward block, or stand "beside" it so that the model's
            function is unchanged at first: the output map starts at zero, or the values do.
        value_init_std: Standard deviation of the initial values. None: 0.02 * V ** -0.5. The u of
            experts start with D ** -0.5: u . x is then about as large as the entries of x. With 0
            beside a block, the output map is drawn as in the place of one: a token that reads no
            row that was written since gets exactly zero.
        lookup: "each" layer looks up slots of its own. "first": the first alone does, and each of
            the others adds a part of its own of the rows that are read there. A row is then as wide
            as all parts together, V times the number of layers.
        match: "slots": a token reads the slots that it finds, of N that are all stored. "nearest":
            only rows that were written are stored, each with the query that it is for and a radius.
            A token reads the row whose query is nearest to its own, if it is within the radius, and
            nothing otherwise: there the model computes what it computed without memory.
    """

    required: ClassVar[Mapping[str, str]] = MappingProxyType({"layers": "[4, 12, 20]"})
    removed: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "grad_mode": "leave it out. Any optimizer trains a table, and MemoryAdamW claims its "
            "tables itself. For SparseAdam: add_memory(model, config, sparse=True)",
            "train_keys": "freeze_keys(model), or `optim: {train_keys: false}` of a run",
            "value_dtype": "add_memory(model, config, value_dtype=torch.bfloat16), or "
            "`optim: {value_dtype: bfloat16}` of a run",
        }
    )
    removed_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"grad_mode": "factored", "train_keys": True, "value_dtype": "model"}
    )

    layers: tuple[int, ...] = ()
    sub_keys: int = 1024
    heads: int = 4
    top_k: int = 32
    key_dim: int | None = None
    value_dim: int | None = None
    share_values: bool = True
    gate: Gate = "silu"
    qk_norm: bool = True
    query_norm: QueryNorm = "none"
    weighing: Weighing = "softmax"
    readout: Readout = "values"
    random_slots: int = 0
    sink_slot: bool = False
    placement: Placement = "replace"
    value_init_std: float | None = None
    lookup: Lookup = "each"
    match: Match = "slots"

    def __post_init__(self) -> None:
        """Refuse sizes and choices that cannot work, naming the field and what to change."""
        self.check_layers()
        self.check_choices()
        for name in ("sub_keys", "heads", "top_k"):
            check_whole(name, getattr(self, name), 1, MOST_SUB_KEYS)
        for name in ("key_dim", "value_dim"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1, MOST_WIDE)
        check_whole("random_slots", self.random_slots, 0, MOST_SUB_KEYS)
        if self.top_k > self.sub_keys:
            raise UserError(
                f"top_k must be at most sub_keys = {self.sub_keys}, got {self.top_k}. "
                "hint: lower top_k or raise sub_keys"
            )
        if self.key_dim is not None and self.key_dim % 2:
            raise UserError(
                f"key_dim must be even, it is split into two halves, got {self.key_dim}. "
                f"hint: use {self.key_dim + 1}"
            )
        if self.sink_slot and self.readout != "values":
            raise UserError(
                f'sink_slot needs readout "values", got {self.readout!r}: the sink has a value and '
                "no expert. hint: leave sink_slot out"
            )
        if self.value_init_std is not None:
            check_number("value_init_std", self.value_init_std)
        if self.lookup == "first" and (not self.share_values or self.readout != "values"):
            raise UserError('lookup "first" needs share_values=True and readout "values"')
        if self.match == "nearest":
            self._check_nearest()

    def _check_nearest(self) -> None:
        needed = {
            "placement": "beside", "share_values": True, "readout": "values",
            "value_init_std": 0, "random_slots": 0, "sink_slot": False,
        }  # fmt: skip
        for name, value in needed.items():
            if getattr(self, name) != value:
                raise UserError(
                    f'match "nearest" needs {name}={value!r}, got {getattr(self, name)!r}. '
                    "hint: leave match out"
                )

    @property
    def num_slots(self) -> int:
        """N, the number of rows of the table."""
        return self.sub_keys**2

    @property
    def reads(self) -> int:
        """J, rows read per token and layer."""
        return self.heads * self.top_k

    @property
    def starts_with_zero_map(self) -> bool:
        """Whether the output map starts at zero: beside a block, unless the values do."""
        return self.placement == "beside" and self.value_init_std != 0

    def resolved(self, model_dim: int) -> MemorySizes:
        """Return the sizes for a model of width D, every None replaced by its default.

        Args:
            model_dim: D.

        Raises:
            UserError: The default key width, V / 2, would be odd or no whole number, or half a
                query has a width of 1 and is to be normalised over it.
        """
        value_dim = self.value_dim or model_dim
        if self.key_dim is None and value_dim % 4:
            raise UserError(
                "key_dim defaults to value_dim / 2, which must be an even whole number, but "
                f"value_dim is {value_dim}. hint: set key_dim, such as {value_dim // 4 * 2 or 2}"
            )
        key_dim = self.key_dim or value_dim // 2
        if self.query_norm == "layer" and key_dim == 2:
            raise UserError(
                'query_norm "layer" needs key_dim >= 4, got 2: a single feature less its mean is 0.'
                " hint: raise key_dim"
            )
        std = self.value_init_std
        std = value_init_std(value_dim) if std is None else float(std)
        return MemorySizes(value_dim, key_dim, std)


def value_init_std(value_dim: int) -> float:
    """Return the standard deviation of initial values of width V where none is given."""
    return 0.02 * value_dim**-0.5
