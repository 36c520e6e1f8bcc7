"""The record that a model folder has of what the model was taught: a patch in a folder inside."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from memory_layers.common.errors import UserError
from memory_layers.config import MemoryConfig
from memory_layers.models.memory_files import DESCRIPTION, WEIGHTS
from memory_layers.models.patches import Patch

# Attribute of a backbone, and folder in that of a model: the patch that its memory is, if recorded.
RECORD, RECORD_FOLDER = "_memory_patch", "memory_patch"
# What says where a model is, for a file beside it.
_PLACE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def write_record(patch: Patch | None, folder: Path) -> None:
    """Write what a model was taught into its folder. Without any, none that was there is left."""
    if patch is not None:
        patch.save(folder / RECORD_FOLDER)
    elif (folder / RECORD_FOLDER).is_dir():
        shutil.rmtree(folder / RECORD_FOLDER)


def read_record(
    folder: Any,  # noqa: ANN401
    memory: MemoryConfig | None,
    options: Mapping[str, Any],
) -> Patch | None:
    """Read what a model was taught, None without a record.

    Args:
        folder: Of the model, or its name on the hub.
        memory: Of the model.
        options: What from_pretrained was given.

    Raises:
        UserError: The record is damaged, or of another memory.
    """
    place = {name: options[name] for name in _PLACE if name in options}
    description = cached_file(
        folder,
        f"{RECORD_FOLDER}/{DESCRIPTION}",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **place,
    )
    if description is None:
        left = Path(folder, options.get("subfolder") or "", RECORD_FOLDER)
        if left.exists():
            raise UserError(
                f"{left} has no {DESCRIPTION}, expected the record of what the model was taught. "
                "hint: copy the folder again, or remove it to do without"
            )
        return None
    # In a cache the two files may come one by one.
    cached_file(folder, f"{RECORD_FOLDER}/{WEIGHTS}", **place)
    patch = Patch.load(Path(description).parent)
    if patch.config != memory:
        raise UserError(f"{description} is of another memory than the model beside it")
    return patch
