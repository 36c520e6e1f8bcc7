"""What a saved memory model carries beside its weights: a format version and a way back to us."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from memory_layers.models.families import Family

FORMAT_VERSION = 1
REMOTE_MODULE = "modeling_memory"


def check_format(version: int) -> None:
    """Refuse a model written by a later version of this package.

    Raises:
        ValueError: The version is above the one known here.
    """
    if version > FORMAT_VERSION:
        raise ValueError(
            f"this model has memory format {version}, this package reads up to {FORMAT_VERSION}. "
            "hint: pip install --upgrade memory-layers"
        )


def write_remote_code(folder: Path, family: Family, classes: Sequence[type]) -> None:
    """Write the module by which Auto classes find us, and its map into config.json.

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
    _replace(folder / f"{REMOTE_MODULE}.py", "\n".join(lines) + "\n")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["auto_map"] = {
        auto: f"{REMOTE_MODULE}.{cls.__name__}" for auto, cls in zip(autos, classes, strict=False)
    }
    _replace(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    os.replace(part, path)
