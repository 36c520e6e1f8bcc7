"""`add_memory`: give a language model memory layers, freshly built or pretrained.

`add_experts` gives it mixtures of experts instead, to compare with.
"""

from typing import Any

from transformers import PreTrainedModel

from memory_layers.config import MemoryConfig
from memory_layers.layers import MemoryLayer, ValueTable
from memory_layers.layers.experts import RoutedExperts
from memory_layers.models.classes import (
    backbone_of,
    install_experts,
    install_memory,
    memory_classes,
)
from memory_layers.models.families import Family, find_family
from memory_layers.moe_config import MoeConfig


def add_memory(model: PreTrainedModel, config: MemoryConfig) -> PreTrainedModel:
    """Add memory layers to a model, in place, and return it.

    The model becomes an instance of the family's memory class: it saves, loads and generates like
    any transformers model. All other weights stay as they are. With `placement="beside"` the
    model computes what it computed before until it is trained.

    Args:
        model: A causal language model or backbone of a supported family.
        config: Sizes and choices, among them which blocks get a memory layer.

    Raises:
        TypeError: `model` is not a transformers model.
        ValueError: The family is not supported, the model has memory already, or a size is wrong.
    """
    family = _family_of_plain(model)
    backbone = backbone_of(model)
    reference = next(backbone.parameters())
    config.resolved(backbone.config.hidden_size)

    install_memory(backbone, config, family)
    for module in backbone.modules():
        # Not the layer as a whole: it may own its table, whose type is a choice of its own.
        if isinstance(module, MemoryLayer):
            for part in (module.query, module.keys, module.sink, module.gate):
                if part is not None:
                    part.to(device=reference.device, dtype=reference.dtype)
        elif isinstance(module, ValueTable):
            fixed = config.value_dtype != "model"
            module.to(device=reference.device, dtype=None if fixed else reference.dtype)
    _change_class(model, family, memory=config.to_dict())
    return model


def add_experts(model: PreTrainedModel, config: MoeConfig) -> PreTrainedModel:
    """Replace feed-forward blocks of a model by mixtures of experts, in place, and return it.

    The model becomes an instance of the family's memory class, as with `add_memory`. The weights
    of the experts are drawn anew.

    Args:
        model: A causal language model or backbone of a supported family.
        config: Sizes and choices, among them which blocks.

    Raises:
        TypeError: `model` is not a transformers model.
        ValueError: The family is not supported, the model has memory or experts already, or a
            layer index is not below the number of blocks.
    """
    family = _family_of_plain(model)
    backbone = backbone_of(model)
    reference = next(backbone.parameters())
    install_experts(backbone, config, family)
    for module in backbone.modules():
        if isinstance(module, RoutedExperts):
            module.to(device=reference.device, dtype=reference.dtype).train(backbone.training)
    _change_class(model, family, moe=config.to_dict())
    return model


def memory_layers_of(model: PreTrainedModel) -> list[MemoryLayer]:
    """Return the memory layers of a model in the order of its blocks."""
    return [module for module in model.modules() if isinstance(module, MemoryLayer)]


def _family_of_plain(model: PreTrainedModel) -> Family:
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers PreTrainedModel, got {type(model).__name__}")
    for kinds, name in ((MemoryLayer, "memory layers"), (RoutedExperts, "experts")):
        if any(isinstance(module, kinds) for module in model.modules()):
            raise ValueError(f"the model has {name} already. hint: start from the plain model")
    return find_family(model.config.model_type)


def _change_class(model: PreTrainedModel, family: Family, **fields: dict[str, Any]) -> None:
    """Make a model an instance of the family's memory class, with fields for its config."""
    classes, plain_config = memory_classes(family), model.config
    values: dict[str, Any] = {**plain_config.to_dict(), **fields}
    values.pop("model_type", None)
    # to_dict leaves the attention implementation out, and without it no mask is made.
    values["attn_implementation"] = plain_config._attn_implementation  # noqa: SLF001
    config = classes.config(**values)
    backbone = backbone_of(model)
    is_backbone = backbone is model
    model.config = backbone.config = config
    for module in model.modules():
        if getattr(module, "config", None) is plain_config:
            setattr(module, "config", config)  # noqa: B010  (not a parameter or module)
    backbone.__class__ = classes.backbone
    if not is_backbone:
        model.__class__ = classes.causal_lm
