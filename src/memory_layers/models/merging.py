"""Several patches together: whether they fit, and one patch of all their teachings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import torch
from torch import Tensor

from memory_layers.common.errors import UserError
from memory_layers.models.fingerprint import same_weight
from memory_layers.models.patches import Conflict, Patch, listed
from memory_layers.models.teachings import Rule


def merge_patches(patches: Sequence[Patch], rule: Rule = "refuse") -> Patch:
    """Return the teachings of several patches as one patch.

    A teaching that several of them have is there once. Each can be reverted from the result.

    Args:
        patches: Of the same base and skeleton, at least one.
        rule: What to do with rows that several teachings wrote: "refuse" them, keep the "first" or
            the "last" in the order of the patches, or the "sum". As rows start at zero, the sum is
            what the teachings together changed; it does not depend on their order.

    Raises:
        UserError: A patch is of another base or skeleton, there are conflicting rows (all are
            listed) and the rule is "refuse", or a patch has settled some by another rule.
    """
    if rule not in get_args(Rule):
        raise UserError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
    if not patches:
        raise UserError("merge needs at least one patch, got none")
    first, *others = patches
    teachings = {teaching.id: teaching for teaching in first.teachings}
    for number, other in enumerate(others, start=2):
        _check_combines(first, other, f"patch {number}, {', '.join(other.ids) or 'without rows'},")
        for teaching in other.teachings:
            known = teachings.setdefault(teaching.id, teaching)
            if known is not teaching and known.digest() != teaching.digest():
                raise UserError(
                    f"teaching {teaching.id} is there twice, not the same: facts of one were "
                    "reverted. hint: revert it from one of the patches"
                )
    merged = replace(first, teachings=tuple(teachings.values()))
    found = merged.conflicts()
    if not found:
        return replace(merged, rule="refuse")
    settled = {patch.rule for patch in patches if patch.rule != "refuse"}
    if rule == "refuse" and (
        len(settled) != 1 or _pairs(found) - _pairs(*(p.conflicts() for p in patches))
    ):
        raise UserError(
            f"{listed(found)}. hint: rule first, last or sum settles them, or leave one out"
        )
    rule = settled.pop() if rule == "refuse" else rule
    if settled - {rule}:
        raise UserError(
            f"a patch has settled its own conflicting rows by {settled.pop()!r}, not by {rule!r}. "
            "hint: merge all with the same rule"
        )
    return replace(merged, rule=rule)


def _check_combines(one: Patch, other: Patch, what: str) -> None:
    """Refuse a patch of another base or skeleton.

    Args:
        one: A patch.
        other: The patch to check.
        what: The latter, for the error.

    Raises:
        UserError: With the reason.
    """
    reason = None
    mine, theirs = one.config.to_dict(), other.config.to_dict()
    fields = [name for name in mine if mine[name] != theirs[name]]
    if fields:
        name = fields[0]
        reason = f"another memory: its {name} is {theirs[name]!r}, not {mine[name]!r}"
    if reason is None and (weight := _other_weight(one.description, other.description)):
        reason = f"another base: its {weight} is another"
    if reason is None:
        name = _difference(one.skeleton, other.skeleton)
        reason = name and f"another skeleton: its {name} is another, drawn or trained otherwise"
    if reason is not None:
        raise UserError(
            f"{what} is of {reason}. hint: only patches taught on the same base and the same "
            "untrained memory go together"
        )


def _difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str | None:
    for name in sorted(one.keys() | other.keys()):
        if name not in one or name not in other:
            return name
        if one[name].dtype != other[name].dtype or not torch.equal(one[name], other[name]):
            return name
    return None


def _other_weight(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Return a weight in which two bases differ."""
    mine, theirs = one["base"], other["base"]
    for name in sorted(mine.keys() | theirs.keys()):
        if name not in mine or name not in theirs or not same_weight(mine[name], theirs[name]):
            return name
    heads = one["head"], other["head"]
    # A backbone alone has none.
    return None if None in heads or same_weight(*heads) else "head"


def _pairs(*conflicts: Sequence[Conflict]) -> set[tuple[str, str]]:
    return {(c.first, c.second) for found in conflicts for c in found}
