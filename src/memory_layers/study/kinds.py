"""Kinds: each baseline as one name, and what it changes in the base run of a comparison.

The memory kinds derive from the base's `memory:` block, which is the setting of `memory_plus`.
Settings of the baselines are those of arXiv 2412.09764 unless a kind says otherwise. Next:
config.py, which reads a comparison, and match.py, which makes its variants cost the same.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
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


def _dense(_base: RunConfig) -> dict[str, Any]:
    return {"memory": None, "moe": None}


def _memory_plus(base: RunConfig) -> dict[str, Any]:
    return _with_memory(_plus(base))


def _memory(base: RunConfig) -> dict[str, Any]:
    """One layer, no gate, keys of at most 256 (section 2 of the paper: "Memory")."""
    return _with_memory(replace(_plus(base), **_one_plain_layer(base)))


def _peer(base: RunConfig) -> dict[str, Any]:
    """Two vectors a slot: 768 sub-keys where Memory has 1024 are slightly more parameters."""
    plus = _plus(base)
    sub_keys = max(plus.sub_keys * 3 // 4, plus.top_k)
    changes = {**_one_plain_layer(base), "readout": "experts", "sub_keys": sub_keys}
    return _with_memory(replace(plus, **changes))


def _moe_expert_choice(_base: RunConfig) -> dict[str, Any]:
    return {"memory": None, "moe": {"routing": "expert_choice", "experts": 8}}


def _moe_fine(_base: RunConfig) -> dict[str, Any]:
    """8 of 64 experts an eighth as wide (OLMoE, arXiv 2409.02060)."""
    return {"memory": None, "moe": {"routing": "token_choice", "experts": 64, "top_k": 8}}


def _memory_beside(base: RunConfig) -> dict[str, Any]:
    """Memory in every block, and every feed-forward block kept (UltraMemV2, arXiv 2508.18756)."""
    layers = tuple(range(base.model.to_preset().layers))
    return _with_memory(replace(_plus(base), placement="beside", layers=layers))


def _one_slot(base: RunConfig) -> dict[str, Any]:
    """A control: the layers without anything to choose from."""
    return _with_memory(replace(_plus(base), sub_keys=1, top_k=1))


def _fixed_slots(base: RunConfig) -> dict[str, Any]:
    """A control: slots that are found by random keys, which are not learned."""
    return {**_with_memory(_plus(base)), "optim": asdict(replace(base.optim, train_keys=False))}


KINDS: Mapping[str, Callable[[RunConfig], dict[str, Any]]] = MappingProxyType(
    {
        "dense": _dense,
        "memory": _memory,
        "memory_plus": _memory_plus,
        "peer": _peer,
        "moe_expert_choice": _moe_expert_choice,
        "moe_fine": _moe_fine,
        "memory_beside": _memory_beside,
        "one_slot": _one_slot,
        "fixed_slots": _fixed_slots,
    }
)
# Fields that make the kind what it is: a variant that sets them would be something else.
_FIXED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "peer": ("memory.readout",),
        "moe_expert_choice": ("moe.routing",),
        "moe_fine": ("moe.routing",),
        "memory_beside": ("memory.placement",),
        "one_slot": ("memory.sub_keys", "memory.top_k"),
        "fixed_slots": ("optim.train_keys",),
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
    for field in _FIXED.get(kind, ()):
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
        return "moe_expert_choice" if run.moe.routing == "expert_choice" else "moe_fine"
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


def _plus(base: RunConfig) -> MemoryConfig:
    return base.memory or base.model.to_preset().memory_plus()


def _one_plain_layer(base: RunConfig) -> dict[str, Any]:
    plus, shape = _plus(base), base.model.to_preset()
    # Without a memory of its own the base says nothing about where: the middle of the model.
    layers = sorted(base.memory.layers) if base.memory else range(shape.layers)
    key_dim = min(256, plus.resolved(shape.hidden_size).key_dim)
    return {"layers": (layers[len(layers) // 2],), "gate": "none", "key_dim": key_dim}


def _with_memory(memory: MemoryConfig) -> dict[str, Any]:
    return {"memory": memory.to_dict(), "moe": None}
