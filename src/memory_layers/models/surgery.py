"""`add_memory`: give a language model memory layers, freshly built or pretrained.

`add_experts` gives it mixtures of experts instead, to compare with.
"""

from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from memory_layers.common.errors import UserError
from memory_layers.config import MemoryConfig, MoeConfig
from memory_layers.layers import MemoryBeside, MemoryLayer, ValueTable
from memory_layers.layers.experts import RoutedExperts
from memory_layers.layers.walk import find_tables, memory_layers_of
from memory_layers.models.classes import (
    backbone_of,
    family_of,
    install,
    memory_classes,
    register_family,
    take_class,
)
from memory_layers.models.families import (
    Family,
    FamilyClasses,
    base_classes,
    family_by_child,
    find_family,
    is_of,
)
from memory_layers.models.names import BASE_NAME, NOT_SAVED, set_name
from memory_layers.models.quantised import check_quantised, let_gradients_pass
from memory_layers.models.record import RECORD
from memory_layers.models.room import check_room, reference_of, warn_of_size

ModelT = TypeVar("ModelT", bound=PreTrainedModel)


def add_memory(
    model: ModelT,
    config: MemoryConfig,
    *,
    target_module: str | None = None,
    value_dtype: torch.dtype | None = None,
    sparse: bool = False,
    mlp: None = None,
) -> ModelT:
    """Add memory layers to a model, in place, and return it.

    The model becomes an instance of the family's memory class: it saves, loads and generates like
    any transformers model. All other weights stay as they are. With `placement="beside"` the
    model computes what it computed before until it is trained.

    Args:
        model: A causal language model, a sequence or token classifier, or a backbone.
        config: Sizes and choices, among them which blocks get a memory layer.
        target_module: For a model of no supported family: the attribute of its blocks that is
            their feed-forward part, called with hidden states [..., D] alone and returning the
            same.
        value_dtype: Storage type of the tables, float32 or bfloat16. None: that of the model.
        sparse: Let the tables leave sparse gradients, for torch.optim.SparseAdam. It is not saved
            with the model.
        mlp: Former name of `target_module`.

    Raises:
        TypeError: `model` is not a transformers model.
        UserError: The family is not supported and `target_module` not given, the model has memory
            already, a size is wrong, or there is no room for the tables. The model is as it was.

    Warns:
        UserWarning: The tables of a memory beside its blocks are larger than the model.
    """
    if mlp is not None:
        raise UserError(f"add_memory has no argument mlp. hint: target_module={mlp!r}")
    attach_memory(model, config, target_module, value_dtype)
    warn_of_size(model, config)
    for table in find_tables(model).values():
        table.sparse = sparse
    return model


def attach_memory(
    model: ModelT,
    config: MemoryConfig,
    target_module: str | None = None,
    value_dtype: torch.dtype | None = None,
) -> ModelT:
    """Do what add_memory does, without a word on how large the memory is."""
    if value_dtype not in (None, torch.float32, torch.bfloat16):
        raise UserError(
            f"value_dtype must be torch.float32, torch.bfloat16 or None, got {value_dtype!r}"
        )
    family = _family_of_plain(model, target_module)
    config.resolved(backbone_of(model).config.hidden_size)
    check_room(model, config, value_dtype)
    return _add(model, config, family, value_dtype)


def add_experts(model: ModelT, config: MoeConfig) -> ModelT:
    """Replace feed-forward blocks of a model by mixtures of experts, in place, and return it.

    The model becomes an instance of the family's memory class, as with `add_memory`. The weights
    of the experts are drawn.

    Args:
        model: A causal language model or backbone of a supported family.
        config: Sizes and choices, among them which blocks.

    Raises:
        TypeError: `model` is not a transformers model.
        UserError: The family is not supported, the model has memory or experts already, or a
            layer index is not below the number of blocks.
    """
    return _add(model, config, _family_of_plain(model))


def remove_memory(model: ModelT) -> ModelT:
    """Take memory layers out of a model, in place, and return it as an instance of its own class.

    Weights of the base that were trained or frozen meanwhile stay so.

    Args:
        model: With memory that stands beside its feed-forward blocks.

    Raises:
        UserError: The model has no memory, or its memory replaced blocks, which are gone.
    """
    layers = memory_layers_of(model)
    if not layers:
        raise UserError("the model has no memory layers to remove")
    family, backbone = family_of(model), backbone_of(model)
    beside = [m for m in backbone.modules() if isinstance(m, MemoryBeside)]
    if not any(part.memory is layers[0] for part in beside):
        raise UserError(
            'the memory layers replaced feed-forward blocks (placement="replace"), which are gone. '
            "hint: load the original model again"
        )
    for block in family.blocks_of(backbone):
        child = getattr(block, family.mlp)
        if isinstance(child, MemoryBeside):
            setattr(block, family.mlp, child.mlp)
    for name, child in list(backbone.named_children()):
        if isinstance(child, ValueTable):
            delattr(backbone, name)
    backbone.__dict__.pop(RECORD, None)
    own = ("memory", "moe", "value_dtype", "written", "memory_format", "auto_map", "architectures")
    fields = {name: value for name, value in model.config.to_dict().items() if name not in own}
    classes = base_classes(family)
    name, role = backbone.__dict__.pop(BASE_NAME, NOT_SAVED), str(model.memory_part)
    _become(model, classes, role, config_like(model, classes, fields))
    set_name(model, name)
    return model


def _add(
    model: ModelT,
    config: MemoryConfig | MoeConfig,
    family: Family,
    value_dtype: torch.dtype | None = None,
) -> ModelT:
    backbone, classes = backbone_of(model), memory_classes(family)
    plain = base_classes(family).by_part()
    role = next(name for name, cls in plain.items() if cls is type(model))
    check_quantised(backbone)
    reference = reference_of(backbone)
    kind = "memory" if isinstance(config, MemoryConfig) else "moe"
    stored = None if value_dtype is None else str(value_dtype).removeprefix("torch.")
    fields = {**model.config.to_dict(), kind: config.to_dict(), "value_dtype": stored}
    changed = config_like(model, classes, fields)

    def place(module: nn.Module) -> None:
        module.train(backbone.training)
        # Not a layer as a whole: it may own its tables, whose type is a choice of its own.
        for part in [module] if isinstance(module, ValueTable) else module.children():
            dtype = value_dtype if isinstance(part, ValueTable) else None
            part.to(device=reference.device, dtype=dtype or reference.dtype)

    install(backbone, config, family, value_dtype or reference.dtype, place)
    let_gradients_pass(backbone)
    # What transformers renamed and joined when it loaded the base. It would undo that when it
    # saves, and not do it again when it loads the folder, whose model type it does not know.
    for part in (model, backbone):
        if getattr(part, "_weight_conversions", None) is not None:
            setattr(part, "_weight_conversions", None)  # noqa: B010  (not a parameter or module)
    setattr(backbone, BASE_NAME, model.name_or_path)
    _become(model, classes, role, changed)
    set_name(model, NOT_SAVED)
    return model


def _family_of_plain(model: PreTrainedModel, target_module: str | None = None) -> Family:
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers PreTrainedModel, got {type(model).__name__}")
    for kinds, name in ((MemoryLayer, "memory layers"), (RoutedExperts, "experts")):
        if any(isinstance(module, kinds) for module in model.modules()):
            raise UserError(f"the model has {name} already. hint: start from the plain model")
    if target_module is not None:
        family = family_by_child(model, target_module)
        register_family(family)
        return family
    name = "name the feed-forward part of its blocks, add_memory(model, config, target_module=...)"
    try:
        family = find_family(model.config.model_type)
    except ValueError as error:
        raise UserError(f"{error}. hint: {name}") from error
    if not is_of(model, family):
        kind = type(model)
        if kind.__module__.startswith("transformers."):
            raise UserError(
                f"memory is for causal language models, sequence and token classifiers and "
                f"backbones, {kind.__name__} is none of these. hint: give a causal language model "
                "memory, and save it for AutoModelForSequenceClassification or "
                "AutoModelForTokenClassification"
            )
        raise UserError(
            f"{kind.__name__} is not the {family.model_type} model of transformers but another "
            f"class, which would be lost. hint: {name}"
        )
    return family


def config_like(
    model: PreTrainedModel, classes: FamilyClasses, fields: dict[str, Any]
) -> PreTrainedConfig:
    """Return a config of these classes with given fields, that a model like this one takes.

    Args:
        model: Says which attention implementation.
        classes: Of a family, with or without memory.
        fields: Of a config as a dictionary. Its model type is that of the classes.
    """
    fields = {name: value for name, value in fields.items() if name != "model_type"}
    # to_dict leaves the attention implementation out, and without it no mask is made.
    fields["attn_implementation"] = model.config._attn_implementation  # noqa: SLF001
    return classes.config(**fields)


def _become(
    model: PreTrainedModel, classes: FamilyClasses, role: str, config: PreTrainedConfig
) -> None:
    """Make a model one of these classes, by its name in PARTS, with another config."""
    backbone, old = backbone_of(model), model.config
    for module in model.modules():
        if getattr(module, "config", None) is old:
            setattr(module, "config", config)  # noqa: B010  (not a parameter or module)
    take_class(model, classes.by_part()[role])
    take_class(backbone, classes.backbone)
