"""The generated classes: a config, a backbone and models with heads, for each family.

A generated model builds its base, then replaces the feed-forward blocks that `config.memory` or
`config.moe` (the baseline: a mixture of experts) names. So `from_pretrained`, `save_pretrained` and
the Auto classes work as for any other model.
"""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import transformers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from memory_layers.common.checksums import write_checksums
from memory_layers.common.errors import UserError
from memory_layers.common.files import finish
from memory_layers.config import MemoryConfig, MoeConfig
from memory_layers.layers import MemoryBeside, MemoryFollower, MemoryLayer, ValueTable, WrittenTable
from memory_layers.layers.experts import Experts, routed_experts
from memory_layers.layers.gate import PlainOutput, SigmoidGate, SiluGate
from memory_layers.layers.keys import ProductKeys
from memory_layers.layers.query import QueryProjection
from memory_layers.layers.read import SinkValue, build_tables
from memory_layers.models.families import (
    FAMILIES,
    PARTS,
    Family,
    FamilyClasses,
    base_classes,
    find_family,
    load_class,
)
from memory_layers.models.intact import check_checksums, check_finite, check_numbers
from memory_layers.models.names import name_as_saved
from memory_layers.models.patches import Patch
from memory_layers.models.record import RECORD, read_record, write_record
from memory_layers.models.remote_code import FORMAT_VERSION, check_fields, write_remote_code

_OWN_MODULES = (
    ValueTable, ProductKeys, QueryProjection, SinkValue, SiluGate, SigmoidGate, PlainOutput,
    Experts,
)  # fmt: skip


class MemoryModelMixin(PreTrainedModel):
    """What a model with memory layers, or experts, does that its base does not.

    Args:
        config: With `memory` or `moe`.

    Raises:
        UserError: The config has both or neither, a field of ours is wrong, or it is of a later
            version of this package.
    """

    memory_family: ClassVar[Family]
    memory_part: ClassVar[str]

    def __init__(self, config: Any) -> None:  # noqa: ANN401
        if self.memory_part.endswith("classifier"):
            # Those of transformers take their backbone from its Auto classes, most of them.
            register_family(self.memory_family)
        super().__init__(config)
        check_fields(config)
        backbone, family = backbone_of(self), self.memory_family
        added = memory_config(config) if config.moe is None else MoeConfig.from_dict(config.moe)
        # After memory_config, which brings it up to date.
        value_dtype = None if config.value_dtype is None else getattr(torch, config.value_dtype)
        if backbone is self or not isinstance(backbone, MemoryModelMixin):
            install(backbone, added, family, value_dtype, written=config.written)
        if backbone is not self:
            take_class(backbone, memory_classes(family).backbone)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, _OWN_MODULES):
            # transformers has patched torch.nn.init here: loaded tensors are left alone.
            module.reset_parameters()
        else:
            super()._init_weights(module)

    def _initialize_weights(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        # transformers takes a custom module whose parameters are all in its children for loaded
        # and leaves those as it draws any Linear: an output that starts at zero would not.
        if not isinstance(module, _OWN_MODULES):
            super()._initialize_weights(module, *args, **kwargs)
        elif not getattr(module, "_is_hf_initialized", False):
            self._init_weights(module)
            setattr(module, "_is_hf_initialized", True)  # noqa: B010  (not a parameter or module)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Save the model as any other, with the code that loads it and what it was taught by whom.

        Args:
            save_directory: The folder.
            *args: As for any model.
            **kwargs: As for any model, but for `push_to_hub`.

        Raises:
            UserError: With `push_to_hub=True`, the base is quantised, or a number is not finite.
        """
        if kwargs.pop("push_to_hub", False):
            raise UserError(
                "push_to_hub=True would upload the folder before the code that loads it. "
                "hint: save_pretrained, then huggingface_hub.upload_folder"
            )
        if getattr(self, "is_quantized", False):
            raise UserError(
                "the base is quantised, and a saved model would quantise its memory when it loads. "
                "hint: save_memory(model, folder), and load_memory onto the same base"
            )
        # Who loads the folder compares checksums alone.
        weights = dict(self.named_parameters())
        given = kwargs.get("state_dict") or weights
        check_finite({name: given[name] for name in weights if name in given}, "the model")
        self.config.written = count_written(self)
        super().save_pretrained(save_directory, *args, **kwargs)
        folder, family = Path(save_directory), self.memory_family
        # A folder of PEFT's adapters has no config.
        if not (folder / "config.json").is_file():
            return
        if not self._hf_peft_config_loaded:
            name_as_saved(self, str(folder))
        # Other processes write nothing.
        if kwargs.get("is_main_process", True):
            write_remote_code(folder, family, memory_classes(family).by_part())
            weights = [*folder.glob("model*.safetensors")]
            finish([*weights, *folder.glob("*.json")], folder)
            write_checksums(folder, weights)
            write_record(_recorded(self), folder)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,  # noqa: ANN401
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Load the model as any other, and what it was taught by whom.

        Args:
            pretrained_model_name_or_path: A folder, or a name of the hub.
            *args: As for any model.
            **kwargs: As for any model.

        Raises:
            UserError: Weights, or the record of what it was taught, are damaged.
        """
        folder = pretrained_model_name_or_path
        if folder is None:
            return super().from_pretrained(folder, *args, **kwargs)
        place = Path(folder, kwargs.get("subfolder") or "")
        # Before, so that the files are read from the disk once.
        is_whole = check_checksums(place)
        loaded = super().from_pretrained(folder, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        check_numbers(model, place, is_whole=is_whole)
        # Experts were taught nothing.
        memory = None if model.config.memory is None else memory_config(model.config)
        patch = read_record(folder, memory, kwargs)
        if patch is not None:
            setattr(backbone_of(model), RECORD, patch)
        return loaded


def take_class(model: PreTrainedModel, kind: type[PreTrainedModel]) -> None:
    """Make a model an instance of another class, in place."""
    model.__class__ = kind
    # transformers notes what the models of a class can output when it makes one of them.
    PreTrainedModel.__init__(kind.__new__(kind), copy.copy(model.config))


@cache
def memory_classes(family: Family) -> FamilyClasses:
    """Generate the classes of a family, once."""
    bases = base_classes(family)
    body: dict[str, Any] = {
        "__doc__": f"{bases.config.__name__} with `memory` or `moe`, the fields of a MemoryConfig "
        "or MoeConfig, and `value_dtype`, the type of the value tables where it is not `dtype`.",
        "__module__": __name__,
        "__reduce__": _reduce,
        "memory_family": family,
        "memory_part": "config",
        "__annotations__": {
            "memory": "dict | None",
            "moe": "dict | None",
            "value_dtype": "str | None",
            "written": "int | None",
            "memory_format": "int",
        },
        "model_type": f"memory_{family.model_type}",
        "memory": None,
        "moe": None,
        "value_dtype": None,
        "written": None,
        "memory_format": FORMAT_VERSION,
    }
    config = type(f"Memory{bases.config.__name__}", (bases.config,), body)

    def model(part: str) -> Any:  # noqa: ANN401
        base = getattr(bases, part)
        if base is None:
            return None
        body: dict[str, Any] = {
            "__doc__": f"{base.__name__} with memory layers or experts in the blocks that its "
            "config names.",
            "__module__": __name__,
            "__reduce__": _reduce,
            "config_class": config,
            "memory_family": family,
            "memory_part": part,
        }
        return type(f"Memory{base.__name__}", (MemoryModelMixin, base), body)

    return FamilyClasses(config, **{part: model(part) for part in PARTS if part != "config"})


def memory_config(config: Any) -> MemoryConfig:  # noqa: ANN401
    """Return the memory of a model's config, which is brought up to date if an older version's.

    Args:
        config: Of a model with memory.
    """
    # Before, the memory had the type of its tables.
    values = dict(config.memory)
    before = values.pop("value_dtype", "model")
    memory = MemoryConfig.from_dict(values)
    if config.value_dtype is None and before != "model":
        config.value_dtype = before
    config.memory = memory.to_dict()
    return memory


def family_of(model: PreTrainedModel) -> Family:
    """Return the family of a model, with or without memory.

    Raises:
        UserError: It is in no table and was not given memory.
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
        UserError: They know another one by its name, or it was registered with classes that have
            been defined again since.
    """
    classes = memory_classes(family)
    model_type = classes.config.model_type
    known = type(AutoConfig.for_model(model_type)) if model_type in CONFIG_MAPPING else None
    if known not in (None, classes.config) or classes.config.__base__ is not load_class(
        family.config
    ):
        raise UserError(
            f"another model of type {model_type!r} has got memory in this process. "
            "hint: use one process for each"
        )
    AutoConfig.register(classes.config.model_type, classes.config, exist_ok=True)
    for part, cls in classes.by_part().items():
        if part != "config":
            auto: Any = getattr(transformers, PARTS[part])
            auto.register(classes.config, cls, exist_ok=True)


def install(
    backbone: PreTrainedModel,
    config: MemoryConfig | MoeConfig,
    family: Family,
    value_dtype: torch.dtype | None = None,
    place: Callable[[nn.Module], None] = lambda module: None,
    written: int | None = None,
) -> None:
    """Put memory layers or experts into the blocks of a backbone, and shared tables on it.

    Args:
        backbone: The model without its head.
        config: Sizes and choices.
        family: Where the blocks are.
        value_dtype: Storage type of the tables. None: torch's default.
        place: Brings each layer and table where it belongs before any of them is put in: if there
            is no room for one, the backbone is as it was.
        written: Number of rows that are written, where only these are stored. None: none.

    Raises:
        UserError: The config of the model does not say how wide its blocks are, as experts need,
            or `layers` is empty or has an index that is not below the number of blocks.
    """
    blocks, base = family.blocks_of(backbone), backbone.config
    chosen = config.chosen_layers(len(blocks))
    layers: list[Any]
    tables: dict[str, ValueTable] = {}
    if isinstance(config, MoeConfig):
        width = getattr(base, "intermediate_size", None)
        if width is None:
            raise UserError(
                "experts are as wide as feed-forward blocks, and the config of "
                f"{family.model_type} has no intermediate_size. "
                "hint: take a family that has one, such as llama"
            )
        std = base.initializer_range
        layers = [routed_experts(config, base.hidden_size, width, std) for _ in chosen]
    else:
        if config.share_values:
            tables = build_tables(config, base.hidden_size, value_dtype, written or 0)
        owner = backbone if config.share_values else None
        layers = [
            MemoryLayer(config, base.hidden_size, owner=owner, value_dtype=value_dtype)
            for _ in (chosen if config.lookup == "each" else chosen[:1])
        ]
        if config.lookup == "first":
            # In the order in which the blocks are passed.
            chosen = sorted(chosen)
            width, leader = base.hidden_size, layers[0]
            layers += [MemoryFollower(config, width, leader, n) for n in range(len(chosen) - 1)]
    for module in (*tables.values(), *layers):
        place(module)
    for name, table in tables.items():
        backbone.add_module(name, table)
    for index, layer in zip(chosen, layers, strict=True):
        block = blocks[index]
        if isinstance(config, MemoryConfig) and config.placement == "beside":
            layer = MemoryBeside(getattr(block, family.mlp), layer)  # noqa: PLW2901
            layer.training = backbone.training
        setattr(block, family.mlp, layer)


def count_written(model: PreTrainedModel) -> int | None:
    """Return how many rows are written, of a memory that stores only these. None: of another."""
    table = getattr(backbone_of(model), "memory_table", None)
    return len(table.weight) if isinstance(table, WrittenTable) else None


def backbone_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model without its head: the model itself if it has none."""
    return cast("PreTrainedModel", model.base_model)


def __getattr__(name: str) -> Any:  # noqa: ANN401
    # Pickled classes, and the code in model folders of earlier versions, name what is generated.
    for family in FAMILIES:
        for cls in memory_classes(family).by_part().values():
            if cls.__name__ == name:
                return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _recorded(model: PreTrainedModel) -> Patch | None:
    """Return the patch that the memory of a model is, if something is recorded."""
    record = getattr(backbone_of(model), RECORD, None)
    # What is offloaded, to memory or disk, cannot have been trained.
    if record is None or any(weight.is_meta for weight in model.parameters()):
        return record
    # Not at the top, it imports this file.
    from memory_layers.models.adapters import patch_of

    return patch_of(model)


def _reduce(
    instance: Any,  # noqa: ANN401
) -> tuple[Callable, tuple[Family, str], dict[str, Any]]:
    """Pickle an instance of a class that no module has under its name."""
    return _blank, (instance.memory_family, instance.memory_part), instance.__dict__


def _blank(family: Family, part: str) -> PreTrainedModel | PreTrainedConfig:
    cls = getattr(memory_classes(family), part)
    return cls.__new__(cls)
