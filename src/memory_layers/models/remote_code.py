"""What a saved memory model has beside its weights: a format version and code that loads it."""

import json
from collections.abc import Sequence
from pathlib import Path

from memory_layers.common.errors import UserError
from memory_layers.common.files import write_file
from memory_layers.models.families import Family

FORMAT_VERSION = 1
REMOTE_MODULE = "modeling_memory"


def check_format(version: int) -> None:
    """Refuse a model written by a later version of this package.

    Raises:
        UserError: The version is above the one known here.
    """
    if version > FORMAT_VERSION:
        raise UserError(
            f"this model has memory format {version}, this package reads up to {FORMAT_VERSION}. "
            "hint: pip install --upgrade memory-layers"
        )


def write_remote_code(folder: Path, family: Family, classes: Sequence[type]) -> None:
    """Write the module by which Auto classes find ours, and its map into config.json.

    Args:
        folder: A folder that save_pretrained wrote.
        family: Of the model.
        classes: Its config, backbone and causal LM, the last of which may be left out.
    """
    kinds = ("config", "backbone", "causal_lm")
    autos = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
    lines = [
        '"""Needs: pip install memory-layers."""',
        "",
        "from memory_layers.models.classes import memory_classes",
        "from memory_layers.models.families import Family",
        "",
        f"_classes = memory_classes({family!r})",
        *(f"{cls.__name__} = _classes.{kind}" for kind, cls in zip(kinds, classes, strict=False)),
    ]
    write_file(folder / f"{REMOTE_MODULE}.py", "\n".join(lines) + "\n")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["auto_map"] = {
        auto: f"{REMOTE_MODULE}.{cls.__name__}" for auto, cls in zip(autos, classes, strict=False)
    }
    write_file(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
