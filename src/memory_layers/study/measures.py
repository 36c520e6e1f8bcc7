"""What variants of a comparison can be made equal in: FLOPs of a token, parameters, seconds.

Next: config.py, which reads it, match.py and step_time.py, which set sizes and steps.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

from memory_layers.common.errors import UserError
from memory_layers.common.text import did_you_mean

Measure = Literal["flops", "parameters", "seconds"]
MEASURES: tuple[Measure, ...] = ("flops", "parameters", "seconds")
# What is set to reach each.
SETS: Mapping[Measure, tuple[str, ...]] = MappingProxyType({
    "flops": ("model.mlp_size", "moe.expert_size"),
    "parameters": ("memory.sub_keys", "moe.experts"),
    "seconds": ("train.steps",),
})  # fmt: skip


def read_match(match: Any, where: str) -> tuple[Measure, ...]:  # noqa: ANN401
    """Read the value of a `match:`.

    Raises:
        UserError: It is no list of measures.
    """
    names = [match] if isinstance(match, str) else match
    if not isinstance(names, list):
        raise UserError(f"{where} must be a list of {', '.join(MEASURES)}, got {match!r}")
    for name in names:
        if name not in MEASURES:
            hint = did_you_mean(name, MEASURES)
            raise UserError(f"{where}: unknown measure {name!r}. hint: {hint}")
    return tuple(name for name in MEASURES if name in names)


def check_references(
    references: Any,  # noqa: ANN401
    measures: Sequence[Measure],
    variants: Mapping[str, object],
    where: str,
) -> None:
    """Refuse a `reference:` that names what is not there, or for what nothing is matched by.

    Raises:
        UserError: It does.
    """
    if not isinstance(references, dict):
        raise UserError(f"{where} must name a variant for a measure, got {references!r}")
    for measure, name in references.items():
        if measure not in measures:
            raise UserError(f"{where}.{measure} has no effect: match is {list(measures)}")
        if name not in variants:
            hint = did_you_mean(name, variants)
            raise UserError(f"{where}.{measure}: unknown variant {name!r}. hint: {hint}")


def find_references(
    measures: Sequence[Measure],
    named: Mapping[str, str],
    dense: Sequence[str],
    memory: Sequence[str],
) -> dict[str, str]:
    """Return for each measure the variant that the others are made to equal.

    Args:
        measures: What is matched.
        named: Those that `reference:` names.
        dense: Dense variants that can take its place, the first of them first.
        memory: Variants with memory that can.

    Raises:
        UserError: There is none that can.
    """
    found = {}
    for measure in measures:
        candidates = dense if measure == "flops" else memory
        if measure in named:
            found[measure] = named[measure]
        elif candidates:
            found[measure] = candidates[0]
        else:
            missing = "a dense variant" if measure == "flops" else "a variant with memory"
            raise UserError(
                f"match: {measure} needs {missing} to equal. "
                f"hint: add one, or name another under `reference: {{{measure}: NAME}}`"
            )
    return found
