"""Paths as people write them: with `~` and `$HOME`, also where no shell has replaced these."""

import os
import re
from pathlib import Path
from typing import Annotated

from memory_layers.common.errors import UserError

# Marks a field of text that is a path, or a name that stands for one, such as "builtin".
IS_PATH = "path"
PathText = Annotated[str, IS_PATH]

# As the hub has them: a name, or an owner and a name.
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def expand(path: str) -> str:
    """Return a path with the folders that a leading `~` and variables stand for.

    Raises:
        UserError: It begins with a home or a variable that is not known here.
    """
    found = os.path.expanduser(os.path.expandvars(path))
    if re.match(r"~|\$\w|\$\{", found):
        raise UserError(
            f"{path}: {found.split('/')[0]} is not known here, expected a home folder or a "
            f"variable that is set. hint: ./{path} for a file of that name"
        )
    return found


def may_be_on_hub(name: str) -> bool:
    """Tell whether a name that is no folder here can be one of the Hugging Face hub."""
    # runs/tiny reads like one, but nobody who has a folder "runs" means that.
    first, *rest = Path(name).parts or ("",)
    return _HUB_NAME.fullmatch(name) is not None and not (rest and Path(first).is_dir())
