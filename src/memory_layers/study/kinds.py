"""Kinds: each baseline as one name, and what it changes in the base run of a comparison.

The memory kinds derive from the base's `memory:` block, which is the setting of `memory_plus`.
Settings of the baselines are those of arXiv 2412.09764 unless a kind says otherwise. Next:
config.py, which reads a comparison, and match.py, which makes its variants cost the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.common.text import did_you_mean
from memory_layers.config import MemoryConfig
from memory_layers.train.config import RunConfig

# What they concern is the optimizer's share of value tables.
_VALUE_OPTIONS = (
    "value_lr", "value_weight_decay", "value_state", "bf16_rows", "value_schedule",
    "value_clip_norm", "value_dtype", "train_keys",
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A variant that has a name.

    Attributes:
        changes: Returns what it changes in a base run.
        fixed: Fields that make it what it is: a variant that sets them would be something else.
    """

    changes: Callable[[RunConfig], dict[str, Any]]
    fixed: tuple[str, ...] = ()


def _with_memory(
    base: RunConfig,
    *,
    one_plain_layer: bool = False,
    **changes: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Return the base's memory with some changes.

    Args:
        base: Without a memory of its own it says nothing about where: the middle of the model.
        one_plain_layer: One layer, no gate and keys of at most 256, as "Memory" in section 2 of
            the paper.
        changes: Fields of MemoryConfig.
    """
    plus, shape = _plus(base), base.model.to_preset()
    if one_plain_layer:
        layers = sorted(base.memory.layers) if base.memory else range(shape.layers)
        key_dim = min(256, plus.resolved(shape.hidden_size).key_dim)
        plain = {"layers": (layers[len(layers) // 2],), "gate": "none", "key_dim": key_dim}
        changes = {**plain, **changes}
    return {"memory": replace(plus, **changes).to_dict(), "moe": None}


def _plus(base: RunConfig) -> MemoryConfig:
    return base.memory or base.model.to_preset().memory_plus()


def _peer(base: RunConfig) -> dict[str, Any]:
    # Two vectors a slot: 768 sub-keys where Memory has 1024 are slightly more parameters.
    plus = _plus(base)
    sub_keys = max(plus.sub_keys * 3 // 4, plus.top_k)
    return _with_memory(base, one_plain_layer=True, readout="experts", sub_keys=sub_keys)


def _memory_beside(base: RunConfig) -> dict[str, Any]:
    layers = tuple(range(base.model.to_preset().layers))
    return _with_memory(base, placement="beside", layers=layers)


def _moe(**moe: Any) -> Kind:  # noqa: ANN401
    return Kind(lambda _base: {"memory": None, "moe": moe}, ("moe.routing",))


def _moe_coarse(base: RunConfig) -> dict[str, Any]:
    width = base.model.to_preset().to_config().intermediate_size
    moe = {"experts": 8, "top_k": 2, "expert_size": width, "normalize_top_k": True}
    return {"memory": None, "moe": {"routing": "token_choice", **moe}}


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "dense": Kind(lambda _base: {"memory": None, "moe": None}),
        "memory": Kind(lambda base: _with_memory(base, one_plain_layer=True)),
        "memory_plus": Kind(_with_memory),
        "peer": Kind(_peer, ("memory.readout",)),
        "moe_expert_choice": _moe(routing="expert_choice", experts=8),
        # 8 of 64 experts an eighth as wide (OLMoE, arXiv 2409.02060).
        "moe_fine": _moe(routing="token_choice", experts=64, top_k=8),
        # 2 of 8 experts as wide as the block, twice its FLOPs (Mixtral, arXiv 2401.04088).
        "moe_coarse": Kind(_moe_coarse, ("moe.routing",)),
        # In every block, and every feed-forward block kept (UltraMemV2, arXiv 2508.18756).
        "memory_beside": Kind(_memory_beside, ("memory.placement",)),
        # A control: the layers without anything to choose from.
        "one_slot": Kind(
            lambda base: _with_memory(base, sub_keys=1, top_k=1),
            ("memory.sub_keys", "memory.top_k"),
        ),
        # A control: slots that are found by random keys, which are not learned.
        "fixed_slots": Kind(
            lambda base: {
                **_with_memory(base),
                "optim": asdict(replace(base.optim, train_keys=False)),
            },
            ("optim.train_keys",),
        ),
    }
)


def check_kind(kind: object, where: str) -> str:
    """Return the name of a kind.

    Raises:
        UserError: There is no such kind. The closest name is given.
    """
    if isinstance(kind, str) and kind in KINDS:
        return kind
    raise UserError(f"{where}: unknown kind {kind!r}. hint: {did_you_mean(kind, KINDS)}")


def check_options(kind: str, changes: Mapping[str, Any], where: str) -> None:
    """Refuse changes that the kind ignores, or that would make it another kind.

    Args:
        kind: Name of a kind.
        changes: What a variant changes beside its kind, nested.
        where: The variant, for errors.

    Raises:
        UserError: It changes such a field.
    """
    uses = {"memory": not (kind == "dense" or is_moe(kind)), "moe": is_moe(kind)}
    for section, is_used in uses.items():
        if section in changes and not is_used:
            raise UserError(f"{where}.{section} has no effect on kind {kind!r}. hint: remove it")
        if section in changes and not isinstance(changes[section], Mapping):
            raise UserError(
                f"{where}.{section} must be a mapping of fields, got {changes[section]!r}. "
                "hint: for a model without, use kind 'dense'"
            )
    if not uses["memory"]:
        for name in _VALUE_OPTIONS:
            if name in (changes.get("optim") or {}):
                raise UserError(
                    f"{where}.optim.{name} has no effect on kind {kind!r}, which has no value "
                    "table. hint: remove it"
                )
    for field in KINDS[kind].fixed:
        section, name = field.split(".")
        if name in changes.get(section, {}):
            raise UserError(
                f"{where}.{field} is what kind {kind!r} sets. hint: remove it, or another kind"
            )


def kind_of(run: RunConfig) -> str:
    """Name the kind that a full configuration comes closest to."""
    memory = run.memory
    if memory is None:
        if run.moe is None:
            return "dense"
        if run.moe.routing == "expert_choice":
            return "moe_expert_choice"
        width = run.model.to_preset().to_config().intermediate_size
        return "moe_fine" if run.moe.hidden_size(width) < width else "moe_coarse"
    if not run.optim.train_keys:
        return "fixed_slots"
    if memory.sub_keys == 1:
        return "one_slot"
    if memory.placement == "beside":
        return "memory_beside"
    if memory.readout != "values":
        return "peer"
    return "memory" if memory.gate == "none" else "memory_plus"


def is_moe(kind: str) -> bool:
    """Tell whether a kind has experts in place of feed-forward blocks."""
    return kind.startswith("moe_")
