"""The memory of a model alone: saved without its base, and put onto the same base again.

Of the base some values of each weight are saved, which tell bases apart. Next: patching.py.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from memory_layers.common.errors import UserError, placed
from memory_layers.config import MemoryConfig
from memory_layers.layers import (
    MemoryBeside,
    MemoryFollower,
    MemoryLayer,
    ValueTable,
    WrittenTable,
)
from memory_layers.layers.walk import memory_layers_of
from memory_layers.models.classes import (
    backbone_of,
    count_written,
    family_of,
    memory_classes,
    memory_config,
)
from memory_layers.models.families import Family, family_by_child
from memory_layers.models.fingerprint import Weights
from memory_layers.models.intact import check_finite, check_shapes
from memory_layers.models.memory_files import (
    CRC,
    DESCRIPTION,
    read_description,
    read_weights,
    write_memory,
)
from memory_layers.models.names import NOT_SAVED, set_name
from memory_layers.models.patches import Patch
from memory_layers.models.quantised import check_quantised
from memory_layers.models.record import RECORD
from memory_layers.models.remote_code import FORMAT_VERSION
from memory_layers.models.surgery import ModelT, attach_memory, config_like
from memory_layers.models.teachings import Teaching, current_rows

_MEMORY = (MemoryFollower, MemoryLayer, ValueTable)


def save_memory(model: PreTrainedModel, folder: str | Path) -> None:
    """Save the memory of a model without its base.

    Of tables whose values start at zero, only the rows that were written are saved: a patch.

    Args:
        model: With memory. Its base is needed again to load the memory: train with
            `freeze_all_but_memory`, or save the whole model.
        folder: Made if it is missing. Files of an earlier call are replaced.

    Raises:
        UserError: The model has no memory, its tables are sharded, or a number is not finite.
    """
    if _config_of(model).value_init_std == 0:
        patch_of(model).save(folder)
        return
    weights = {name: tensor.detach().contiguous() for name, tensor in _memory_of(model).items()}
    check_finite(weights, "the model's memory")
    write_memory(Path(folder), _describe(model), weights)


def load_memory(model: ModelT, folder: str | Path) -> ModelT:
    """Add the memory that `save_memory` wrote to its base, in place, and return the model.

    Args:
        model: The base, or the base with memory of the same configuration, which is overwritten.
        folder: What `save_memory` wrote, or a patch.

    Raises:
        FileNotFoundError: A file is missing.
        UserError: The folder is of a newer version or damaged, or the model is another base. The
            model is as it was.
    """
    folder = Path(folder)
    description = read_description(folder / DESCRIPTION)
    patch = Patch.load(folder) if "teachings" in description else None
    weights = read_weights(folder, description.get(CRC)) if patch is None else patch.skeleton
    try:
        put_memory(model, description, weights, patch, str(folder))
    except UserError as error:
        raise placed(error, folder) from error
    return model


def patch_of(model: PreTrainedModel) -> Patch:
    """Return the patch that the memory of a model is.

    Rows that have been written since the last teaching was recorded are a teaching of their own,
    of which nothing more is known.

    Args:
        model: With memory whose values start at zero.

    Raises:
        UserError: The model has no memory or another, its tables are sharded, or a row is not
            finite.
    """
    patch, slots, values, based_on = recorded(model)
    if len(slots) == 0:
        return patch
    unknown = Teaching(slots=slots, values=values, based_on=based_on)
    return replace(patch, teachings=(*patch.teachings, unknown))


def base_digest(model: PreTrainedModel) -> str:
    """Return a name of the base of a model, memory or not: 32 hexadecimal digits."""
    known, base = Weights(model), _split(model)[1]
    values = {name: known.fingerprint(tensor)["values"] for name, tensor in base.items()}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def freeze_all_but_memory(model: ModelT) -> ModelT:
    """Let only the memory layers and their tables learn, in place, and return the model.

    Raises:
        UserError: The model has no memory layers.
    """
    _config_of(model)
    model.requires_grad_(False)
    for tensor in _split(model)[0].values():
        tensor.requires_grad_(isinstance(tensor, nn.Parameter))
    return model


def _split(model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return parameters and buffers of a backbone: memory, and the rest as the base names it."""
    backbone = backbone_of(model)
    kinds = {name: type(module) for name, module in backbone.named_modules()}
    ours = tuple(f"{name}." for name, kind in kinds.items() if issubclass(kind, _MEMORY))
    beside = [f"{name}." for name, kind in kinds.items() if issubclass(kind, MemoryBeside)]
    # Not state_dict, where scales stand beside quantised weights as if they were weights too.
    passing = {name for name, _ in backbone.named_non_persistent_buffers(remove_duplicate=False)}
    tensors: dict[str, Tensor] = dict(backbone.named_parameters(remove_duplicate=False))
    tensors |= backbone.named_buffers(remove_duplicate=False)
    memory, base = {}, {}
    for name, tensor in tensors.items():
        if name in passing:
            continue
        if name.startswith(ours):
            memory[name] = tensor
            continue
        outer = next((prefix for prefix in beside if name.startswith(prefix)), "")
        base[outer + name.removeprefix(f"{outer}mlp.") if outer else name] = tensor
    return memory, base


def _config_of(model: PreTrainedModel) -> MemoryConfig:
    if not memory_layers_of(model):
        raise UserError(
            "the model has no memory layers. hint: add_memory(model, config), or load_memory, first"
        )
    return memory_config(model.config)


def _memory_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return parameters and buffers of the memory, checked to be whole."""
    memory = {name: tensor.detach() for name, tensor in _split(model)[0].items()}
    wanted = _wanted(model, _config_of(model), family_of(model))
    check_shapes(memory, wanted, "the model's memory, is it sharded?")
    return memory


def _describe(model: PreTrainedModel) -> dict[str, Any]:
    """Return what memory.json says of the memory and the base of a model."""
    known, head = Weights(model), _head_of(model)
    return {
        "memory_format": FORMAT_VERSION,
        "memory": _config_of(model).to_dict(),
        "value_dtype": model.config.value_dtype,
        "target_module": family_of(model).mlp,
        "base": {name: known.fingerprint(tensor) for name, tensor in _split(model)[1].items()},
        "head": None if head is None else known.fingerprint(head),
    }


def fit_base(
    model: PreTrainedModel, description: Mapping[str, Any], where: str
) -> tuple[MemoryConfig, Family]:
    """Return the memory that a description is of, and the family of the model that it fits.

    Raises:
        UserError: It is of another base, or the model has another memory.
    """
    # Of an earlier version: it is used elsewhere.
    values = {name: v for name, v in description["memory"].items() if name != "value_dtype"}
    config = MemoryConfig.from_dict(values)
    has_memory = bool(memory_layers_of(model))
    if has_memory and _config_of(model) != config:
        raise UserError(
            f"the model has memory of another configuration than {where}. "
            "hint: load it onto the plain model"
        )
    check_quantised(model)
    child = description["target_module"]
    family = family_of(model) if has_memory else family_by_child(model, child)
    replaced = tuple(
        f"{family.blocks}.{layer}.{child}."
        for layer in (config.layers if config.placement == "replace" else ())
    )
    found = {k: t for k, t in _split(model)[1].items() if not k.startswith(replaced)}
    known, head = Weights(model), _head_of(model)
    problem = known.difference(found, description["base"])
    if problem is None and head is not None and description["head"] is not None:
        same = known.is_like(head, description["head"])
        problem = None if same else "its output embeddings are others"
    if problem is not None:
        raise UserError(
            f"the memory in {where} was trained with another base than this model: {problem}. "
            "hint: load it onto the model that it was added to"
        )
    return config, family


def put_memory(
    model: PreTrainedModel,
    description: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    patch: Patch | None,
    where: str,
) -> None:
    """Give a model this memory, whether it has some or not.

    Args:
        model: The base, with or without memory of the same configuration.
        description: Of memory and base.
        weights: Of the memory. Without value tables where there is a patch.
        patch: Has the rows of the tables.
        where: What it is, for errors.
    """
    config, family = fit_base(model, description, where)
    wanted = _wanted(model, config, family)
    tables = {name: wanted.pop(name) for name in list(wanted) if patch and _is_table(name)}
    check_shapes(weights, wanted, where)
    check_finite(weights, where)
    slots, values = (torch.empty(0), torch.empty(0)) if patch is None else patch.rows()
    for name, table in tables.items():
        width = table.shape[-1]
        if name.endswith(".weight") and len(slots) and values.shape[1] != width:
            raise UserError(f"{name} has rows of width {width}, got {values.shape[1]}: {where}")
    if not memory_layers_of(model):
        dtype = description.get("value_dtype") or description["memory"].get("value_dtype")
        value_dtype = None if dtype in (None, "model") else getattr(torch, dtype)
        child = description["target_module"]
        attach_memory(model, config, child, value_dtype)
    with torch.no_grad():
        memory = _split(model)[0]
        for name, tensor in weights.items():
            memory[name].copy_(tensor)
        written = [m for m in backbone_of(model).children() if isinstance(m, WrittenTable)]
        for table in written:
            table.write(slots.long(), values.view(len(slots), table.value_dim))
        for number, name in enumerate([] if written else tables):
            first = number * config.num_slots
            mine = (slots >= first) & (slots < first + config.num_slots)
            table = memory[name]
            table[_written(table)] = 0
            if mine.any():
                table[(slots[mine] - first).to(table.device)] = values[mine].to(table)
    set_record(model, patch)
    set_name(model, NOT_SAVED)


def recorded(model: PreTrainedModel) -> tuple[Patch, Tensor, Tensor, list[str]]:
    """Return what a model was taught as far as recorded, and rows that were written since.

    Returns:
        The patch that is recorded, slots and values of the rows that are others now, and the ids of
        the recorded teachings that had written some of these.
    """
    if _config_of(model).value_init_std != 0:
        raise UserError(
            "a patch is of memory whose values start at zero, which this model's do not. "
            "hint: MemoryConfig(..., value_init_std=0), or save_memory for whole tables"
        )
    memory = _memory_of(model)
    tables = [memory.pop(name) for name in list(memory) if _is_table(name)]
    stored = getattr(backbone_of(model), "memory_table", None)
    record = getattr(backbone_of(model), RECORD, None)
    patch = Patch(
        description=_describe(model),
        # Copies: the model may be trained further.
        skeleton={name: tensor.to("cpu", copy=True) for name, tensor in memory.items()},
    )
    if record is not None:
        # In the type in which it was taught, unless it has been trained since.
        same = has_skeleton(model, record.skeleton)
        skeleton = record.skeleton if same else patch.skeleton
        patch = replace(patch, skeleton=skeleton, teachings=record.teachings, rule=record.rule)
    if isinstance(stored, WrittenTable):
        slots, values = _changed_written(stored, patch)
    else:
        slots, values = _changed_rows(tables, patch)
    owners = [
        teaching.id
        for teaching, mask in current_rows(patch.teachings)
        if torch.isin(teaching.slots[mask], slots).any()
    ]
    return patch, slots, values, owners


def _changed_rows(tables: Sequence[Tensor], patch: Patch) -> tuple[Tensor, Tensor]:
    """Return slots and values of rows that are not, to the bit, what a patch says."""
    changed = torch.cat([_written(table).cpu() for table in tables])

    def rows_at(slots: Tensor) -> Tensor:
        parts = []
        for number, table in enumerate(tables):
            local = slots - number * len(table)
            mine = local[(local >= 0) & (local < len(table))]
            parts.append(table[mine.to(table.device)].cpu())
        return torch.cat(parts)

    slots, values = patch.rows()
    if len(slots):
        now = rows_at(slots)
        changed[slots] = (_bits(now) != _bits(values.to(now.dtype))).any(1)
    slots = changed.nonzero()[:, 0]
    return slots, rows_at(slots)


def _changed_written(table: WrittenTable, patch: Patch) -> tuple[Tensor, Tensor]:
    """Do what `_changed_rows` does, for a table of the written slots."""
    slots, values = patch.rows()
    now = table.slots.cpu()
    every = torch.cat([slots, now]).unique()
    rows = table.rows_of(every).cpu()
    recorded = torch.zeros_like(rows)
    if len(slots):
        recorded[torch.searchsorted(every, slots)] = values.to(rows)
    # A slot that is written with zeros is another thing than one that is not written.
    listed = torch.isin(every, slots) != torch.isin(every, now)
    changed = (_bits(rows) != _bits(recorded)).any(1) | listed
    return every[changed], rows[changed]


def _bits(rows: Tensor) -> Tensor:
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return rows.contiguous().view(whole[rows.element_size()])


def _written(table: Tensor) -> Tensor:
    """Return which rows are not zero, to the bit: bool [N]."""
    return _bits(table).any(1)


def set_record(model: PreTrainedModel, patch: Patch | None) -> None:
    """Let a model remember what it was taught by whom."""
    setattr(backbone_of(model), RECORD, patch)


def has_skeleton(model: PreTrainedModel, skeleton: Mapping[str, Tensor]) -> bool:
    """Say whether a model's memory has this skeleton, rounded to the types of its own."""
    memory = {name: t for name, t in _split(model)[0].items() if not _is_table(name)}
    return memory.keys() == skeleton.keys() and all(
        torch.equal(skeleton[name].to(tensor), tensor) for name, tensor in memory.items()
    )


def _is_table(name: str) -> bool:
    return name.startswith("memory_table.") or name.endswith(".memory_table.weight")


def _wanted(model: PreTrainedModel, config: MemoryConfig, family: Family) -> dict[str, Tensor]:
    """Return what `_split` calls memory, without numbers, of a model that may not have it yet."""
    classes = memory_classes(family)
    sizes = count_written(model)
    fields = {**model.config.to_dict(), "memory": config.to_dict(), "written": sizes}
    with torch.device("meta"):
        twin = classes.backbone(config_like(model, classes, fields))
    return _split(twin)[0]


def _head_of(model: PreTrainedModel) -> Tensor | None:
    head = None if backbone_of(model) is model else model.get_output_embeddings()
    return None if head is None else head.weight
