"""Patches on models: put down what was taught, apply patches and take them out again.

teachings.py and patches.py say what they are.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from memory_layers.common.errors import UserError
from memory_layers.layers.walk import memory_layers_of
from memory_layers.models.adapters import (
    fit_base,
    has_skeleton,
    patch_of,
    put_memory,
    recorded,
    set_record,
)
from memory_layers.models.merging import merge_patches
from memory_layers.models.patches import Patch, Selection
from memory_layers.models.surgery import ModelT
from memory_layers.models.teachings import Fact, Rule, new_teaching


def record_teaching(
    model: PreTrainedModel,
    *,
    author: str = "",
    data: Sequence[Mapping[str, Any]] = (),
    settings: Mapping[str, Any] | None = None,
    facts: Iterable[Fact] = (),
) -> Patch:
    """Put down who taught a model what it has learned since the last call, and from what.

    Args:
        model: With memory whose values start at zero. It carries the record from now on: saved by
            `save_pretrained`, and needed by `revert_patch`.
        author: Who taught it.
        data: For each source its `name`, and what else is known, such as `sha256`, `rows` and
            `facts`: plain values.
        settings: How it was taught: plain values.
        facts: Facts with the rows that each hangs on, so that one can be reverted alone.

    Returns:
        All that the model has been taught. The new teaching is the last.

    Raises:
        UserError: As `patch_of`, or data or settings are no plain values.
    """
    patch, slots, values, based_on = recorded(model)
    taught = new_teaching(
        slots, values, author=author, data=data, settings=settings, facts=facts, based_on=based_on
    )
    patch = replace(patch, teachings=(*patch.teachings, taught))
    set_record(model, patch)
    return patch


def apply_patch(model: ModelT, patch: Patch, rule: Rule = "refuse") -> ModelT:
    """Teach a model what a patch knows, in place, and return it.

    Patches that wrote different rows may be applied in any order: the result is the same, to the
    bit.

    Args:
        model: The base of the patch, plain or with memory of the same skeleton.
        patch: What to apply.
        rule: As for `merge_patches`. The patches of the model come first.

    Raises:
        UserError: The model is another base or has another memory, carries the patch already, or
            rows were written that the patch writes too and the rule is "refuse". The model is as
            it was.
    """
    if memory_layers_of(model):
        carried = patch_of(model)
        if patch.teachings and set(patch.ids) <= set(carried.ids):
            raise UserError(f"the model carries the patch already: {', '.join(patch.ids)}")
        fit_base(model, patch.description, "the patch")
        if carried.teachings == () and has_skeleton(model, patch.skeleton):
            carried = replace(carried, skeleton=patch.skeleton)
        patch = merge_patches([carried, patch], rule)
    put_memory(model, patch.description, patch.skeleton, patch, "the patch")
    return model


def revert_patch(
    model: PreTrainedModel,
    patch: Patch | str | Collection[str],
    facts: str | Collection[str] | Collection[int] | None = None,
) -> Selection:
    """Take what a patch taught out of a model, in place.

    The model is then, to the bit, what the patches that remain make of it, whenever they were
    applied. Without any it computes what its base does.

    Args:
        model: Which carries the patch: it was applied, recorded or loaded.
        patch: The patch, or ids of teachings.
        facts: Take out single facts: text that is part of their prompt or answer, in any case of
            letters, or several of these, or their indices in the one teaching. Rows that others
            hang on too stay. None: all of the patch.

    Returns:
        What was taken out, which rows of it stay, and what else reads those that went.

    Raises:
        UserError: The model does not carry the patch, no fact is meant, other facts hang on all
            rows of one, or a teaching that remains has trained rows of it further. The model is as
            it was.
    """
    carried = patch_of(model)
    ids = patch.ids if isinstance(patch, Patch) else patch
    selection = carried.select((ids,) if isinstance(ids, str) else ids, facts)
    left = carried.without(selection)
    put_memory(model, left.description, left.skeleton, left, "the patch")
    return selection
