"""The generated subclasses: a config, a backbone and a causal LM with memory for each family.

A generated model builds its base, then replaces the feed-forward blocks that `config.memory` or
`config.moe` (the baseline: a mixture of experts) names. So `from_pretrained`, `save_pretrained` and
the Auto classes work as for any other model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from memory_layers.config import MemoryConfig
from memory_layers.layers import MemoryBeside, MemoryLayer, ValueTable, build_layer
from memory_layers.layers.experts import ExpertChoice, Experts, TokenChoice
from memory_layers.layers.gate import PlainOutput, SigmoidGate, SiluGate
from memory_layers.layers.keys import ProductKeys
from memory_layers.layers.memory import build_tables
from memory_layers.layers.query import QueryProjection
from memory_layers.layers.values import SinkValue
from memory_layers.models.families import FAMILIES, Family
from memory_layers.models.saving import FORMAT_VERSION, check_format, write_remote_code
from memory_layers.moe_config import MoeConfig

_OWN_MODULES = (
    ValueTable, ProductKeys, QueryProjection, SinkValue, SiluGate, SigmoidGate, PlainOutput,
    Experts,
)  # fmt: skip


@dataclass(frozen=True)
class MemoryClasses:
    """The generated classes of one family."""

    config: type[PreTrainedConfig]
    backbone: type[PreTrainedModel]
    causal_lm: type[PreTrainedModel]


@cache
def memory_classes(family: Family) -> MemoryClasses:
    """Generate the classes of a family, once."""
    base_config = getattr(transformers, f"{family.prefix}Config")
    config = type(
        f"Memory{family.prefix}Config",
        (base_config,),
        {
            "__doc__": f"{base_config.__name__} with `memory` or `moe`, the fields of "
            "a MemoryConfig or MoeConfig.",
            "__module__": __name__,
            "__annotations__": {
                "memory": "dict | None",
                "moe": "dict | None",
                "memory_format": "int",
            },
            "model_type": f"memory_{family.model_type}",
            "memory": None,
            "moe": None,
            "memory_format": FORMAT_VERSION,
        },
    )
    backbone = _subclass(getattr(transformers, f"{family.prefix}Model"), config, family)
    causal_lm = _subclass(getattr(transformers, f"{family.prefix}ForCausalLM"), config, family)
    return MemoryClasses(config, backbone, causal_lm)


def register_families() -> None:
    """Make transformers' Auto classes know every family with memory."""
    for family in FAMILIES:
        classes = memory_classes(family)
        AutoConfig.register(classes.config.model_type, classes.config, exist_ok=True)
        AutoModel.register(classes.config, classes.backbone, exist_ok=True)
        AutoModelForCausalLM.register(classes.config, classes.causal_lm, exist_ok=True)


def install_memory(backbone: PreTrainedModel, config: MemoryConfig, family: Family) -> None:
    """Put memory layers into the blocks of a backbone, and shared tables on the backbone.

    Args:
        backbone: The model without its head.
        config: Sizes and choices.
        family: Where the blocks are.

    Raises:
        ValueError: A layer index is not below the number of blocks.
    """
    blocks = family.blocks_of(backbone)
    beyond = [layer for layer in config.layers if layer >= len(blocks)]
    if beyond:
        raise ValueError(
            f"layers must be below the number of blocks, {len(blocks)}, got {beyond}. "
            f"hint: the last block is {len(blocks) - 1}"
        )
    model_dim = backbone.config.hidden_size
    if config.share_values:
        for name, table in build_tables(config, model_dim).items():
            backbone.add_module(name, table)
    for index in config.layers:
        block = blocks[index]
        owner = backbone if config.share_values else None
        memory = build_layer(config, model_dim, owner)
        if config.placement == "beside":
            setattr(block, family.mlp, MemoryBeside(getattr(block, family.mlp), memory))
        else:
            setattr(block, family.mlp, memory)


def install_experts(backbone: PreTrainedModel, config: MoeConfig, family: Family) -> None:
    """Put a mixture of experts into the blocks of a backbone that a config names.

    Args:
        backbone: The model without its head.
        config: Sizes and choices.
        family: Where the blocks are.

    Raises:
        ValueError: A layer index is not below the number of blocks.
    """
    blocks, base = family.blocks_of(backbone), backbone.config
    layer = ExpertChoice if config.routing == "expert_choice" else TokenChoice
    for index in config.chosen_layers(len(blocks)):
        experts = layer(config, base.hidden_size, base.intermediate_size, base.initializer_range)
        setattr(blocks[index], family.mlp, experts)


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model without its head: the model itself if it has none."""
    return cast("PreTrainedModel", model.base_model)


def _subclass(
    base: type[PreTrainedModel], config_class: type[PreTrainedConfig], family: Family
) -> type[PreTrainedModel]:
    def __init__(self: PreTrainedModel, config: PreTrainedConfig) -> None:  # noqa: N807
        base.__init__(self, config)
        if config.memory is None and config.moe is None:
            raise ValueError(
                "config.memory is None, and config.moe too. "
                "hint: build the plain model and call add_memory(model, ...)"
            )
        if config.memory is not None and config.moe is not None:
            raise ValueError("config.memory and config.moe are both set. hint: remove one")
        check_format(config.memory_format)
        backbone = backbone_of(self)
        if config.memory is not None:
            install_memory(backbone, MemoryConfig.from_dict(config.memory), family)
        else:
            install_experts(backbone, MoeConfig.from_dict(config.moe), family)
        backbone.__class__ = memory_classes(family).backbone if backbone is not self else type(self)
        self.post_init()

    def _init_weights(self: PreTrainedModel, module: nn.Module) -> None:
        if isinstance(module, _OWN_MODULES):
            # transformers has patched torch.nn.init here: loaded tensors are left alone.
            module.reset_parameters()
        else:
            base._init_weights(self, module)  # noqa: SLF001

    def _initialize_weights(self: PreTrainedModel, module: nn.Module, *args: bool) -> None:
        if isinstance(module, MemoryLayer):
            # transformers makes whatever it loads trainable.
            module.freeze_keys()
        # transformers takes a custom module whose parameters are all in its children for loaded
        # and leaves those as it draws any Linear: an output that starts at zero would not.
        if not isinstance(module, _OWN_MODULES):
            base._initialize_weights(self, module, *args)  # noqa: SLF001
        elif not getattr(module, "_is_hf_initialized", False):
            _init_weights(self, module)
            setattr(module, "_is_hf_initialized", True)  # noqa: B010  (not a parameter or module)

    def save_pretrained(
        self: PreTrainedModel,
        save_directory: str | Path,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        base.save_pretrained(self, save_directory, *args, **kwargs)
        write_remote_code(Path(save_directory), family.prefix)

    body: dict[str, str | type | Callable] = {
        "__doc__": f"{base.__name__} with memory layers or experts in the blocks that its config "
        "names.",
        "__module__": __name__,
        "__init__": __init__,
        "_init_weights": _init_weights,
        "_initialize_weights": _initialize_weights,
        "save_pretrained": save_pretrained,
        "config_class": config_class,
    }
    return type(f"Memory{base.__name__}", (base,), body)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    # Pickle and saved model folders find a generated class by its name in this module.
    for family in FAMILIES:
        classes = memory_classes(family)
        for cls in (classes.config, classes.backbone, classes.causal_lm):
            if cls.__name__ == name:
                return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
