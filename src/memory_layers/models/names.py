"""The name of a model: where from_pretrained would find it, for those who load it again.

TRL loads a reference model by it, and PEFT writes it into an adapter as the name of its base.
"""

from transformers import PreTrainedModel

# No name of a folder or of the hub, so that what loads it ends in an error that shows it.
NOT_SAVED = "(not saved yet: model.save_pretrained(folder), then from_pretrained(folder))"


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
