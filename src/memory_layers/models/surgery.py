"""`add_memory`: give a language model memory layers, freshly built or pretrained."""

from typing import Any

from transformers import PreTrainedModel

from memory_layers.config import MemoryConfig
from memory_layers.layers import MemoryLayer, ValueTable
from memory_layers.models.classes import backbone_of, install_memory, memory_classes
from memory_layers.models.families import find_family


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
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers PreTrainedModel, got {type(model).__name__}")
    if memory_layers_of(model):
        raise ValueError("the model has memory layers already. hint: start from the plain model")
    family = find_family(model.config.model_type)
    classes = memory_classes(family)
    backbone = backbone_of(model)
    reference = next(backbone.parameters())
    config.resolved(backbone.config.hidden_size)

    plain_config = model.config
    values: dict[str, Any] = {**plain_config.to_dict(), "memory": config.to_dict()}
    values.pop("model_type", None)
    # to_dict leaves the attention implementation out, and without it no mask is made.
    values["attn_implementation"] = plain_config._attn_implementation  # noqa: SLF001
    memory_config = classes.config(**values)
    install_memory(backbone, config, family)
    for module in backbone.modules():
        # Not the layer as a whole: it may own its table, whose type is a choice of its own.
        if isinstance(module, MemoryLayer):
            for part in (module.query, module.keys, module.gate):
                part.to(device=reference.device, dtype=reference.dtype)
        elif isinstance(module, ValueTable):
            fixed = config.value_dtype != "model"
            module.to(device=reference.device, dtype=None if fixed else reference.dtype)

    is_backbone = backbone is model
    model.config = backbone.config = memory_config
    for module in model.modules():
        if getattr(module, "config", None) is plain_config:
            setattr(module, "config", memory_config)  # noqa: B010  (not a parameter or module)
    backbone.__class__ = classes.backbone
    if not is_backbone:
        model.__class__ = classes.causal_lm
    return model


def memory_layers_of(model: PreTrainedModel) -> list[MemoryLayer]:
    """Return the memory layers of a model in the order of its blocks."""
    return [module for module in model.modules() if isinstance(module, MemoryLayer)]
