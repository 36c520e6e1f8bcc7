"""The name of a model: where from_pretrained would find it, for those who load it again.

TRL loads a reference model by it, and PEFT writes it into an adapter as the name of its base.
"""

from transformers import PreTrainedModel

# No name of a folder or of the hub, so that what loads it ends in an error that shows it.
NOT_SAVED = "(not saved yet: model.save_pretrained(folder), then from_pretrained(folder))"
# Attribute of a backbone: the name that the model had before it was given memory.
BASE_NAME = "_memory_base_name"
# Attribute of a model: the folder that it was saved to and named by.
_SAVED_AS = "_memory_saved_as"


def set_name(model: PreTrainedModel, name: str) -> None:
    """Name a model, and all models and configurations that it is made of."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.name_or_path = name
            config = module.config
            parts = [getattr(config, part, None) for part in config.sub_configs]
            for each in (config, *parts):
                if each is not None:
                    each.name_or_path = name


def name_as_saved(model: PreTrainedModel, folder: str) -> None:
    """Name a model by the folder it was saved to, unless its name is one that somebody gave it."""
    if model.name_or_path in (NOT_SAVED, getattr(model, _SAVED_AS, NOT_SAVED)):
        set_name(model, folder)
        setattr(model, _SAVED_AS, folder)


def base_name(model: PreTrainedModel) -> str:
    """Return the name of the base of a model, with memory or without."""
    return str(getattr(model.base_model, BASE_NAME, model.name_or_path))
