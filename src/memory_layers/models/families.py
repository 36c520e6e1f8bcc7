"""Which model families can get memory, and where their feed-forward blocks are."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

from torch import nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)

from memory_layers.common.errors import UserError


@dataclass(frozen=True)
class Family:
    """The classes of a family, and where its blocks are.

    Attributes:
        model_type: `config.model_type`.
        config: Class of the configuration, as "module.Name".
        backbone: Class of the model without its head.
        causal_lm: Class of the model with a language-modelling head. None: there is none.
        blocks: Attribute of the backbone that lists the blocks, with dots if it lies deeper.
        mlp: Attribute of a block that is its feed-forward part, hidden [..., D] → [..., D].
    """

    model_type: str
    config: str
    backbone: str
    causal_lm: str | None
    blocks: str = "layers"
    mlp: str = "mlp"

    def blocks_of(self, backbone: nn.Module) -> nn.ModuleList:
        """Return the blocks of a backbone, in order."""
        blocks = backbone.get_submodule(self.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks


def _family(model_type: str, prefix: str, **others: str) -> Family:
    """Name the classes as most families of transformers do."""
    names = {"config": "Config", "backbone": "Model", "causal_lm": "ForCausalLM"}
    classes = {kind: others.pop(kind, prefix + end) for kind, end in names.items()}
    full = {kind: f"transformers.{name}" for kind, name in classes.items()}
    return Family(model_type, **full, **others)


FAMILIES = (
    _family("llama", "Llama"),
    _family("qwen2", "Qwen2"),
    _family("qwen3", "Qwen3"),
    _family("mistral", "Mistral"),
    _family("gemma2", "Gemma2"),
    _family("gemma3_text", "Gemma3", config="Gemma3TextConfig", backbone="Gemma3TextModel"),
    _family("olmo2", "Olmo2"),
    _family("phi3", "Phi3"),
    _family("gpt2", "GPT2", causal_lm="GPT2LMHeadModel", blocks="h"),
    _family("gpt_neox", "GPTNeoX"),
    _family("smollm3", "SmolLM3"),
)


def find_family(model_type: str) -> Family:
    """Return the family of a model type.

    Raises:
        UserError: The type is not in the table.
    """
    for family in FAMILIES:
        if model_type == family.model_type:
            return family
    known = ", ".join(family.model_type for family in FAMILIES)
    raise UserError(f"models of type {model_type!r} are not in the table of families: {known}")


def family_by_child(model: PreTrainedModel, target_module: str) -> Family:
    """Describe a plain model by the name that its blocks give their MLP.

    Args:
        model: A causal language model or backbone.
        target_module: Attribute of each block, [..., D] → [..., D].

    Returns:
        The row of the table that says the same, if there is one.

    Raises:
        UserError: No list of blocks has such a child, or several have, or a class of the model
            cannot be imported.
    """
    backbone = model.base_model
    found = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module)
        and all(isinstance(getattr(block, target_module, None), nn.Module) for block in module)
    ]
    if len(found) != 1:
        where = f"the lists {', '.join(found)} have" if found else "no list of blocks has"
        children = sorted({
            child
            for module in backbone.modules()
            if isinstance(module, nn.ModuleList)
            for block in module
            for child, _ in block.named_children()
        })  # fmt: skip
        raise UserError(
            f"target_module={target_module!r} must name one child of every block, {where} it. "
            f"hint: the blocks have {', '.join(children) or 'no children'}"
        )
    for block in backbone.get_submodule(found[0]).children():
        _refuse_more_inputs(getattr(block, target_module), target_module)
    for family in FAMILIES:
        if (family.blocks, family.mlp) == (found[0], target_module) and is_of(model, family):
            return family
    is_known = model is backbone or type(model) in classifiers_of(type(model.config))
    return Family(
        # Not that of the table, which may say otherwise.
        f"{model.config.model_type}_{target_module}",
        config=_path(type(model.config)),
        backbone=_path(type(backbone)),
        causal_lm=None if is_known else _path(type(model)),
        blocks=found[0],
        mlp=target_module,
    )


def _refuse_more_inputs(child: nn.Module, target_module: str) -> None:
    """Refuse a child whose forward needs more than hidden states, such as an attention."""
    needed = [
        name
        for name, parameter in inspect.signature(child.forward).parameters.items()
        # An attention may do without its mask, but blocks give it one.
        if name == "attention_mask"
        or (
            parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        )
    ]
    if len(needed) > 1:
        raise UserError(
            f"target_module={target_module!r} must name a child that takes hidden states alone, "
            f"it takes {', '.join(needed)}. hint: name the feed-forward part of the blocks"
        )


# Parts of a family, and the Auto class of transformers that finds each.
PARTS: Mapping[str, str] = MappingProxyType(
    {
        "config": "AutoConfig",
        "backbone": "AutoModel",
        "causal_lm": "AutoModelForCausalLM",
        "sequence_classifier": "AutoModelForSequenceClassification",
        "token_classifier": "AutoModelForTokenClassification",
    }
)


@dataclass(frozen=True)
class FamilyClasses:
    """The classes of a family itself, or those generated with memory. Not all have every head."""

    config: type[PreTrainedConfig]
    backbone: type[PreTrainedModel]
    causal_lm: type[PreTrainedModel] | None = None
    sequence_classifier: type[PreTrainedModel] | None = None
    token_classifier: type[PreTrainedModel] | None = None

    def by_part(self) -> dict[str, Any]:
        """Return those that there are, by their names in PARTS."""
        found = {part: getattr(self, part) for part in PARTS}
        return {part: cls for part, cls in found.items() if cls is not None}


def base_classes(family: Family) -> FamilyClasses:
    """Return the classes of transformers, or of a user, that a family names."""
    head = None if family.causal_lm is None else load_class(family.causal_lm)
    config = load_class(family.config)
    return FamilyClasses(config, load_class(family.backbone), head, *classifiers_of(config))


def classifiers_of(config: type[PreTrainedConfig]) -> list[Any]:
    """Return what classifies sequences, and tokens, with a config. None: transformers has none."""
    kinds = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
    return [kind.get(config, None) for kind in kinds]


def is_of(model: PreTrainedModel, family: Family) -> bool:
    """Say whether the classes of a plain model are those of a family, not derived from them."""
    backbone, classes = model.base_model, base_classes(family)
    if (type(model.config), type(backbone)) != (classes.config, classes.backbone):
        return False
    return type(model) in classes.by_part().values()


def load_class(path: str) -> Any:  # noqa: ANN401
    """Return the class that a path such as "transformers.LlamaConfig" names."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def _path(cls: type) -> str:
    path = f"{cls.__module__}.{cls.__qualname__}"
    try:
        found = load_class(path)
    except (ImportError, AttributeError):
        found = None
    # The classes of a script have another module in the process that loads, as have those that came
    # with a model folder.
    elsewhere = cls.__module__.split(".")[0] in ("__main__", "transformers_modules")
    if found is not cls or elsewhere:
        raise UserError(
            f"the class {path} cannot be imported by that name, so a saved model could not be "
            "loaded. hint: define it in a module that can be imported, not in a function, a script "
            "or a second time"
        )
    return path
