"""The generated subclasses: a config, a backbone and a causal LM with memory for each family.

A generated model builds its base, then replaces the feed-forward blocks that `config.memory` or
`config.moe` (the baseline: a mixture of experts) names. So `from_pretrained`, `save_pretrained` and
the Auto classes work as for any other model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partialmethod
from pathlib import Path
from typing import Any, cast

import transformers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from memory_layers.config import MemoryConfig, MoeConfig
from memory_layers.layers import MemoryBeside, MemoryLayer, ValueTable, build_layer
from memory_layers.layers.experts import ExpertChoice, Experts, TokenChoice
from memory_layers.layers.gate import PlainOutput, SigmoidGate, SiluGate
from memory_layers.layers.keys import ProductKeys
from memory_layers.layers.memory import build_tables
from memory_layers.layers.query import QueryProjection
from memory_layers.layers.values import SinkValue
from memory_layers.models.families import FAMILIES, Family, find_family, load_class
from memory_layers.models.saving import FORMAT_VERSION, check_format, write_remote_code

_OWN_MODULES = (
    ValueTable, ProductKeys, QueryProjection, SinkValue, SiluGate, SigmoidGate, PlainOutput,
    Experts,
)  # fmt: skip


@dataclass(frozen=True)
class MemoryClasses:
    """The generated classes of one family. A family without a head has none with one."""

    config: type[PreTrainedConfig]
    backbone: type[PreTrainedModel]
    causal_lm: type[PreTrainedModel] | None

    def all(self) -> tuple[type, ...]:
        """Return those that there are: config, backbone, causal LM."""
        head = () if self.causal_lm is None else (self.causal_lm,)
        return (self.config, self.backbone, *head)


@cache
def memory_classes(family: Family) -> MemoryClasses:
    """Generate the classes of a family, once."""
    base_config = load_class(family.config)
    name = f"Memory{base_config.__name__}"
    config = type(
        name,
        (base_config,),
        {
            "__doc__": f"{base_config.__name__} with `memory` or `moe`, the fields of "
            "a MemoryConfig or MoeConfig.",
            "__module__": __name__,
            "__reduce__": partialmethod(_reduce, family, "config"),
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
    backbone = _subclass(family.backbone, config, family, "backbone")
    if family.causal_lm is None:
        return MemoryClasses(config, backbone, None)
    return MemoryClasses(config, backbone, _subclass(family.causal_lm, config, family, "causal_lm"))


def family_of(model: PreTrainedModel) -> Family:
    """Return the family of a model, with or without memory.

    Raises:
        ValueError: It is in no table and was not given memory.
    """
    return getattr(model, "memory_family", None) or find_family(model.config.model_type)


def register_families() -> list[Family]:
    """Make transformers' Auto classes know every family of the table that it has: these."""
    found = []
    for family in FAMILIES:
        names = (family.config, family.backbone, family.causal_lm)
        if all(hasattr(transformers, str(name).removeprefix("transformers.")) for name in names):
            register_family(family)
            found.append(family)
    return found


def register_family(family: Family) -> None:
    """Make transformers' Auto classes know a family with memory.

    Raises:
        ValueError: They know another one by its name, or it was registered with classes that have
            been defined anew since.
    """
    classes = memory_classes(family)
    model_type = classes.config.model_type
    known = type(AutoConfig.for_model(model_type)) if model_type in CONFIG_MAPPING else None
    if known not in (None, classes.config) or classes.config.__base__ is not load_class(
        family.config
    ):
        raise ValueError(
            f"another model of type {model_type!r} has got memory in this process. "
            "hint: use one process for each"
        )
    AutoConfig.register(classes.config.model_type, classes.config, exist_ok=True)
    AutoModel.register(classes.config, classes.backbone, exist_ok=True)
    if classes.causal_lm is not None:
        AutoModelForCausalLM.register(classes.config, classes.causal_lm, exist_ok=True)


def install_memory(
    backbone: PreTrainedModel,
    config: MemoryConfig,
    family: Family,
    place: Callable[[nn.Module], None] = lambda module: None,
) -> None:
    """Put memory layers into the blocks of a backbone, and shared tables on the backbone.

    Args:
        backbone: The model without its head.
        config: Sizes and choices.
        family: Where the blocks are.
        place: Brings each layer and table where it belongs before any of them is put in: if there
            is no room for one, the backbone is as it was.

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
    tables = build_tables(config, model_dim) if config.share_values else {}
    owner = backbone if config.share_values else None
    layers = [build_layer(config, model_dim, owner) for _ in config.layers]
    for module in (*tables.values(), *layers):
        place(module)
    for name, table in tables.items():
        backbone.add_module(name, table)
    for index, memory in zip(config.layers, layers, strict=True):
        block = blocks[index]
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
        ValueError: A layer index is not below the number of blocks, or the config of the model
            does not say how wide those are.
    """
    blocks, base = family.blocks_of(backbone), backbone.config
    if getattr(base, "intermediate_size", None) is None:
        raise ValueError(
            "experts are as wide as feed-forward blocks, and the config of "
            f"{family.model_type} has no intermediate_size. "
            "hint: take a family that has one, such as llama"
        )
    layer = ExpertChoice if config.routing == "expert_choice" else TokenChoice
    for index in config.chosen_layers(len(blocks)):
        experts = layer(config, base.hidden_size, base.intermediate_size, base.initializer_range)
        setattr(blocks[index], family.mlp, experts)


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model without its head: the model itself if it has none."""
    return cast("PreTrainedModel", model.base_model)


def _subclass(
    path: str, config_class: type[PreTrainedConfig], family: Family, kind: str
) -> type[PreTrainedModel]:
    base = load_class(path)

    def __init__(self: PreTrainedModel, config: PreTrainedConfig) -> None:  # noqa: N807
        base.__init__(self, config)
        check_format(config.memory_format)
        if config.memory is None and config.moe is None:
            raise ValueError(
                "config.memory is None, and config.moe too. "
                "hint: build the plain model and call add_memory(model, ...)"
            )
        if config.memory is not None and config.moe is not None:
            raise ValueError("config.memory and config.moe are both set. hint: remove one")
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
        if kwargs.pop("push_to_hub", False):
            raise ValueError(
                "push_to_hub=True would upload the folder before the code that loads it. "
                "hint: save_pretrained, then huggingface_hub.upload_folder"
            )
        base.save_pretrained(self, save_directory, *args, **kwargs)
        # Other processes write nothing, and a folder of PEFT's adapters has no config.
        if kwargs.get("is_main_process", True) and (Path(save_directory) / "config.json").is_file():
            write_remote_code(Path(save_directory), family, memory_classes(family).all())

    body: dict[str, Any] = {
        "__doc__": f"{base.__name__} with memory layers or experts in the blocks that its config "
        "names.",
        "__module__": __name__,
        "__init__": __init__,
        "_init_weights": _init_weights,
        "_initialize_weights": _initialize_weights,
        "save_pretrained": save_pretrained,
        "__reduce__": partialmethod(_reduce, family, kind),
        "config_class": config_class,
        "memory_family": family,
    }
    return type(f"Memory{base.__name__}", (base,), body)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    # Pickled classes, and the code in model folders of earlier versions, name what is generated.
    for family in FAMILIES:
        for cls in memory_classes(family).all():
            if cls.__name__ == name:
                return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _reduce(
    instance: PreTrainedModel | PreTrainedConfig, family: Family, kind: str
) -> tuple[Callable, tuple[Family, str], dict[str, Any]]:
    """Pickle an instance of a generated class, which no module has under its name."""
    return _blank, (family, kind), instance.__dict__


def _blank(family: Family, kind: str) -> PreTrainedModel | PreTrainedConfig:
    cls = getattr(memory_classes(family), kind)
    return cls.__new__(cls)
