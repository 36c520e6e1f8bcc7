"""The folders of checkpoints and models that a run leaves, found without loading torch."""

import re
from pathlib import Path

from memory_layers.common.errors import UserError
from memory_layers.common.text_files import read_json

STATE_FILE = "state.pt"
# What a study records of a run that has finished.
RESULT = "result.json"

_NAME = re.compile(r"step-(\d{8})")


def list_checkpoints(out: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    folder = out / "checkpoints"
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found)


def has_saved(out: Path) -> bool:
    """Tell whether a run has saved what is worth keeping: a checkpoint, its model or its result."""
    return bool(list_checkpoints(out)) or (out / "model").exists() or (out / RESULT).exists()


def find_checkpoint(path: Path) -> Path:
    """Return a checkpoint, or the newest one of a run.

    Raises:
        UserError: `path` is neither.
    """
    # The last one is of an earlier version: read_state says what to do with it.
    if any((path / name).is_file() for name in (".metadata", STATE_FILE, "trainer.pt")):
        return path
    if found := list_checkpoints(path):
        return found[-1]
    raise UserError(
        f"{path} is neither a checkpoint nor the folder of a run that has one. "
        "hint: give runs/NAME or runs/NAME/checkpoints/step-NNNNNNNN"
    )


def check_replaceable(out: Path) -> None:
    """Refuse to replace anything but a model folder.

    Raises:
        UserError: `out` is something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    config = out / "config.json"
    if config.is_file() and not (out / STATE_FILE).exists():
        try:
            if "model_type" in read_json(config):
                return
        except (UserError, TypeError):
            # Cut off, as without power.
            if any(out.glob("model*.safetensors")):
                return
    raise UserError(f"{out} exists and is not a model folder. hint: choose another folder")
