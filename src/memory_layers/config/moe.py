"""MoeConfig: every size and choice of a mixture of experts, the baseline of memory layers.

Next: layers/experts.py, the layers that these fields describe.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from memory_layers.common.checks import MOST_WIDE, MOST_WORDS, check_number, check_whole
from memory_layers.common.errors import UserError
from memory_layers.config.blocks import BlocksConfig

Routing = Literal["expert_choice", "token_choice"]

# Fields that only one routing reads.
_READ_BY = {
    "capacity_factor": "expert_choice",
    "top_k": "token_choice",
    "balance_weight": "token_choice",
    "normalize_top_k": "token_choice",
}


@dataclass(frozen=True, kw_only=True)
class MoeConfig(BlocksConfig):
    """A mixture of experts in place of feed-forward blocks.

    Attributes:
        routing: "expert_choice", each expert takes its best tokens (arXiv 2202.09368), the baseline
            of "Memory Layers at Scale". "token_choice", each token takes its best experts without
            a limit, as in OLMoE (arXiv 2409.02060).
        experts: Number of experts of a block.
        expert_size: Hidden width of an expert. None: that of the feed-forward block for
            "expert_choice", and a `top_k`-th of it, rounded up, for "token_choice". A token then
            costs what it costs in the block.
        top_k: Experts of a token. Only for "token_choice".
        capacity_factor: Experts of a token in the mean, in training. Only for "expert_choice".
        layers: Indices of the blocks that get experts, counted from 0. None: all.
        balance_weight: Of the loss that spreads tokens over experts. Only for "token_choice".
        normalize_top_k: The factors of a token's experts add up to one, as in Mixtral (arXiv
            2401.04088). False: they are the router's probabilities. Only for "token_choice".
    """

    required: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"routing": "expert_choice", "experts": "8"}
    )

    routing: Routing
    experts: int
    expert_size: int | None = None
    top_k: int = 8
    capacity_factor: float = 1.0
    layers: tuple[int, ...] | None = None
    balance_weight: float = 0.01
    normalize_top_k: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes and choices that cannot work, naming the field and what to change."""
        self.check_choices()
        self.check_layers()
        self.check_named()
        check_whole("experts", self.experts, 2, 2**14)
        check_whole("top_k", self.top_k, 1, MOST_WIDE)
        if self.expert_size is not None:
            check_whole("expert_size", self.expert_size, 1, MOST_WORDS)
        for name in ("capacity_factor", "balance_weight"):
            check_number(name, getattr(self, name))
        for name, routing in _READ_BY.items():
            value = getattr(self, name)
            if self.routing != routing and value != getattr(MoeConfig, name):
                raise UserError(
                    f"{name} has no effect with routing {self.routing!r}, got {value}. "
                    f"hint: leave it out, or use routing {routing!r}"
                )
        if self.routing == "token_choice" and self.top_k > self.experts:
            raise UserError(
                f"top_k must be at most experts = {self.experts}, got {self.top_k}. "
                "hint: lower top_k or raise experts"
            )
        if self.normalize_top_k and self.top_k == 1:
            raise UserError(
                "normalize_top_k must be false with top_k 1: the factor would always be one, and "
                "the router would learn nothing from it. hint: raise top_k, or leave it out"
            )
        if not 0 < self.capacity_factor <= self.experts:
            raise UserError(
                f"capacity_factor must be above 0 and at most experts = {self.experts}, "
                f"got {self.capacity_factor}"
            )

    def hidden_size(self, mlp_size: int) -> int:
        """Return the hidden width of an expert.

        Args:
            mlp_size: Hidden width of the feed-forward block.
        """
        if self.expert_size is not None:
            return self.expert_size
        return mlp_size if self.routing == "expert_choice" else -(-mlp_size // self.top_k)

    @property
    def share(self) -> float:
        """Part of the experts that compute a token in training, on average over tokens."""
        each = self.top_k if self.routing == "token_choice" else self.capacity_factor
        return each / self.experts
