"""The memory of a model alone: saved without its base, and put onto the same base again.

A folder has memory.safetensors and memory.json: the MemoryConfig, the name of the feed-forward
child of a block, and some values of each weight of the base, which tell bases apart.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from memory_layers.common.errors import UserError
from memory_layers.common.files import replacing
from memory_layers.config import MemoryConfig
from memory_layers.layers import MemoryBeside, MemoryLayer, ValueTable
from memory_layers.layers.walk import memory_layers_of
from memory_layers.models.classes import backbone_of, family_of, memory_classes, memory_config
from memory_layers.models.families import Family, family_by_child
from memory_layers.models.fingerprint import Weights
from memory_layers.models.remote_code import FORMAT_VERSION, check_format
from memory_layers.models.surgery import ModelT, add_memory, config_like

WEIGHTS, DESCRIPTION = "memory.safetensors", "memory.json"
_KEYS = ("memory_format", "memory", "target_module", "base", "head")
_MEMORY = (MemoryLayer, ValueTable)


def save_memory(model: PreTrainedModel, folder: str | Path) -> None:
    """Save the memory of a model without its base.

    Args:
        model: With memory. Its base is needed again to load the memory: train with
            `freeze_all_but_memory`, or save the whole model.
        folder: Made if it is missing. Files of an earlier call are replaced.

    Raises:
        UserError: The model has no memory, or its tables are sharded.
    """
    config, family, (memory, base) = _config_of(model), family_of(model), _split(model)
    known, head = Weights(model), _head_of(model)
    weights = {name: tensor.detach().contiguous() for name, tensor in memory.items()}
    _check_shapes(weights, _shapes(model, config, family), "the model's memory, is it sharded?")
    description = {
        "memory_format": FORMAT_VERSION,
        "memory": config.to_dict(),
        "value_dtype": model.config.value_dtype,
        "target_module": family.mlp,
        "base": {name: known.fingerprint(tensor) for name, tensor in base.items()},
        "head": None if head is None else known.fingerprint(head),
    }
    files = Path(folder) / WEIGHTS, Path(folder) / DESCRIPTION
    with replacing(*files) as parts:
        save_file(weights, parts[0], {"format": "pt"})
        parts[1].write_text(json.dumps(description, indent=1), "utf-8")
        # Never new weights beside an old description.
        files[1].unlink(missing_ok=True)


def load_memory(model: ModelT, folder: str | Path) -> ModelT:
    """Add the memory that `save_memory` wrote to its base, in place, and return the model.

    Args:
        model: The base, or the base with memory of the same configuration, which is overwritten.
        folder: What `save_memory` wrote.

    Raises:
        FileNotFoundError: A file is missing.
        UserError: The folder is of a newer version or damaged, or the model is another base. The
            model is as it was.
    """
    folder = Path(folder)
    description = _description(folder / DESCRIPTION)
    # Of an earlier version: it is used below.
    values = {name: v for name, v in description["memory"].items() if name != "value_dtype"}
    config = MemoryConfig.from_dict(values)
    has_memory = bool(memory_layers_of(model))
    if has_memory and _config_of(model) != config:
        raise UserError(
            f"the model has memory of another configuration than {folder}. "
            "hint: load it onto the plain model"
        )
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
            f"the memory in {folder} was trained with another base than this model: {problem}. "
            "hint: load it onto the model that it was added to"
        )
    try:
        weights = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise UserError(
            f"{folder / WEIGHTS} is damaged or cut off: {error}. hint: save the memory again"
        ) from error
    _check_shapes(weights, _shapes(model, config, family), str(folder / WEIGHTS))
    if not has_memory:
        dtype = description.get("value_dtype") or description["memory"].get("value_dtype")
        value_dtype = None if dtype in (None, "model") else getattr(torch, dtype)
        add_memory(model, config, target_module=child, value_dtype=value_dtype)
    with torch.no_grad():
        for name, tensor in _split(model)[0].items():
            tensor.copy_(weights[name])
    return model


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
    tensors = {name for name, _ in backbone.named_parameters(remove_duplicate=False)}
    tensors |= {name for name, _ in backbone.named_buffers(remove_duplicate=False)}
    memory, base = {}, {}
    for name, tensor in backbone.state_dict(keep_vars=True).items():
        # Scales and the like stand beside quantised weights, as if they were weights too.
        if name not in tensors:
            continue
        if name.startswith(ours):
            memory[name] = tensor
            continue
        outer = next((prefix for prefix in beside if name.startswith(prefix)), "")
        base[outer + name.removeprefix(f"{outer}mlp.") if outer else name] = tensor
    return memory, base


def _config_of(model: PreTrainedModel) -> MemoryConfig:
    if not memory_layers_of(model):
        raise UserError("the model has no memory layers. hint: add_memory(model, config) first")
    return memory_config(model.config)


def _shapes(model: PreTrainedModel, config: MemoryConfig, family: Family) -> dict[str, torch.Size]:
    """Return the shapes of what `_split` calls memory, of a model that may not have it yet."""
    classes = memory_classes(family)
    fields = {**model.config.to_dict(), "memory": config.to_dict()}
    with torch.device("meta"):
        twin = classes.backbone(config_like(model, classes, fields))
    return {name: tensor.shape for name, tensor in _split(twin)[0].items()}


def _check_shapes(
    weights: Mapping[str, Tensor], expected: Mapping[str, torch.Size], where: str
) -> None:
    for name in sorted(weights.keys() | expected.keys()):
        found = list(weights[name].shape) if name in weights else None
        wanted = list(expected[name]) if name in expected else None
        if found != wanted:
            raise UserError(f"{name} must have shape {wanted}, got {found}: {where}")


def _description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}. hint: save the memory again") from error
    if not isinstance(description, dict):
        description = {}
    # A later version may have other fields.
    check_format(description.get("memory_format", FORMAT_VERSION))
    if "mlp" in description:
        description["target_module"] = description.pop("mlp")
    missing = [key for key in _KEYS if key not in description]
    missing += [key for key in ("memory", "base") if not isinstance(description.get(key), dict)]
    if missing:
        raise UserError(
            f"{path} is damaged, it lacks {', '.join(dict.fromkeys(missing))}. hint: save it again"
        )
    return description


def _head_of(model: PreTrainedModel) -> Tensor | None:
    head = None if backbone_of(model) is model else model.get_output_embeddings()
    return None if head is None else head.weight
