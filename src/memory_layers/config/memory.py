"""MemoryConfig: every size and choice of a memory layer, checked once, here.

Next: layers/memory.py, the layer that these fields describe.
"""

from dataclasses import InitVar, asdict, dataclass
from typing import Any, ClassVar, Literal, Self

from memory_layers.common.checks import check_fields, check_whole

Gate = Literal["silu", "sigmoid", "none"]
Placement = Literal["replace", "beside"]
ValueDtype = Literal["model", "float32", "bfloat16"]
QueryNorm = Literal["none", "batch", "layer"]
Weighing = Literal["softmax", "relu", "sigmoid"]
Readout = Literal["values", "experts", "linear_experts"]


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


_CHOICES = {
    "gate": ("silu", "sigmoid", "none"),
    "placement": ("replace", "beside"),
    "value_dtype": ("model", "float32", "bfloat16"),
    "query_norm": ("none", "batch", "layer"),
    "weighing": ("softmax", "relu", "sigmoid"),
    "readout": ("values", "experts", "linear_experts"),
}


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Memory+ of "Memory Layers at Scale" (arXiv 2412.09764) by default.

    Attributes:
        layers: Indices of the blocks that get a memory layer, counted from 0.
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
        train_keys: False leaves query projection, sub-keys and what belongs to them at their
            initial values: a control, in which no slot is learned to be found.
        placement: "replace" the feed-forward block, or stand "beside" it with a zero-initialised
            output, so that the model's function is unchanged at first.
        value_init_std: Standard deviation of the initial values. None: 0.02 * V ** -0.5. The u of
            experts start with D ** -0.5: u . x is then about as large as the entries of x.
        value_dtype: Storage type of the table, "model" for that of the other parameters.
    """

    layers: tuple[int, ...]
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
    train_keys: bool = True
    placement: Placement = "replace"
    value_init_std: float | None = None
    value_dtype: ValueDtype = "model"
    grad_mode: InitVar[None] = None

    # Fields that earlier versions wrote into the folders of models and runs, and what to do now.
    removed: ClassVar[dict[str, str]] = {
        "grad_mode": "leave it out. Any optimizer trains a table, and MemoryAdamW claims its "
        "tables itself. For SparseAdam set `sparse` of the ValueTable"
    }

    def __post_init__(self, grad_mode: None) -> None:
        """Refuse sizes and choices that cannot work, naming the field and what to change."""
        if grad_mode is not None:
            raise ValueError(f"grad_mode was removed. hint: {self.removed['grad_mode']}")
        if isinstance(self.layers, int | str):
            raise ValueError(f"layers must be a list of block indices, got {self.layers!r}")
        object.__setattr__(self, "layers", tuple(self.layers))
        self._check_layers()
        for name in ("sub_keys", "heads", "top_k"):
            check_whole(name, getattr(self, name), 1)
        for name in ("key_dim", "value_dim"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        for name in ("share_values", "qk_norm", "sink_slot", "train_keys"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        if self.top_k > self.sub_keys:
            raise ValueError(
                f"top_k must be at most sub_keys = {self.sub_keys}, got {self.top_k}. "
                "hint: lower top_k or raise sub_keys"
            )
        if self.key_dim is not None and self.key_dim % 2:
            raise ValueError(
                f"key_dim must be even, it is split into two halves, got {self.key_dim}. "
                f"hint: use {self.key_dim + 1}"
            )
        drawn = self.random_slots
        if isinstance(drawn, bool) or not isinstance(drawn, int) or drawn < 0:
            raise ValueError(f"random_slots must be a whole number >= 0, got {drawn!r}")
        if self.sink_slot and self.readout != "values":
            raise ValueError(
                f'sink_slot needs readout "values", got {self.readout!r}: the sink has a value and '
                "no expert. hint: leave sink_slot out"
            )
        std = self.value_init_std
        if std is not None and not (isinstance(std, (int, float)) and 0 <= std < float("inf")):
            raise ValueError(f"value_init_std must be a finite number >= 0, got {std!r}")

    def _check_layers(self) -> None:
        if not self.layers:
            raise ValueError("layers must name at least one block, got none. hint: layers: [4]")
        for layer in self.layers:
            if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
                raise ValueError(f"layers must be block indices counted from 0, got {layer!r}")
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers must not name a block twice, got {list(self.layers)}")

    @property
    def slots(self) -> int:
        """N, the number of rows of the table."""
        return self.sub_keys**2

    @property
    def reads(self) -> int:
        """J, rows read per token and layer."""
        return self.heads * self.top_k

    def resolved(self, model_dim: int) -> "MemorySizes":
        """Return the sizes for a model of width D, every None replaced by its default.

        Args:
            model_dim: D.

        Raises:
            ValueError: The default key width, V / 2, would be odd or no whole number, or half a
                query has a width of 1 and is to be normalised over it.
        """
        value_dim = self.value_dim or model_dim
        if self.key_dim is None and value_dim % 4:
            raise ValueError(
                "key_dim defaults to value_dim / 2, which must be an even whole number, but "
                f"value_dim is {value_dim}. hint: set key_dim, such as {value_dim // 4 * 2 or 2}"
            )
        std = 0.02 * value_dim**-0.5 if self.value_init_std is None else self.value_init_std
        key_dim = self.key_dim or value_dim // 2
        if self.query_norm == "layer" and key_dim == 2:
            raise ValueError(
                'query_norm "layer" needs key_dim >= 4, got 2: a single feature less its mean is 0.'
                " hint: raise key_dim"
            )
        return MemorySizes(value_dim, key_dim, float(std))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON and YAML."""
        return {**asdict(self), "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a config from plain values, such as `to_dict` of this or an earlier version gave.

        Raises:
            ValueError: A field is unknown (the closest name is given), missing or wrong.
        """
        values = {name: value for name, value in values.items() if name not in cls.removed}
        check_fields(cls, values)
        if "layers" not in values:
            raise ValueError("MemoryConfig needs `layers`. hint: layers: [4, 12, 20]")
        return cls(**values)
