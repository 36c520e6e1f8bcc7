"""What a saved memory model carries beside its weights: a format version and a way back to us."""

import json
import os
from pathlib import Path

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


def auto_map(prefix: str) -> dict[str, str]:
    """Return what config.json needs so that Auto classes find us with trust_remote_code=True."""
    return {
        "AutoConfig": f"{REMOTE_MODULE}.Memory{prefix}Config",
        "AutoModel": f"{REMOTE_MODULE}.Memory{prefix}Model",
        "AutoModelForCausalLM": f"{REMOTE_MODULE}.Memory{prefix}ForCausalLM",
    }


def write_remote_code(folder: Path, prefix: str) -> None:
    """Write the module that `auto_map` names, and the map into config.json.

    Args:
        folder: A folder that save_pretrained wrote.
        prefix: What the class names of the family start with.
    """
    names = [f"Memory{prefix}{kind}" for kind in ("Config", "Model", "ForCausalLM")]
    imports = ", ".join(f"{name} as {name}" for name in names)
    code = (
        '"""Needs: pip install memory-layers."""\n\n'
        f"from memory_layers.models.classes import {imports}\n"
    )
    _replace(folder / f"{REMOTE_MODULE}.py", code)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["auto_map"] = auto_map(prefix)
    _replace(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, "utf-8")
    os.replace(part, path)
