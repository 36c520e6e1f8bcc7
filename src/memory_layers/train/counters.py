"""What a run counts from step to step, looked at when a checkpoint gives it back."""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memory_layers.common.errors import UserError
from memory_layers.train.folders import STATE_FILE
from memory_layers.train.stored import damaged


def check_counters(folder: Path, counters: Mapping[str, Any], slots: int) -> None:
    """Refuse what no run counts.

    Args:
        folder: The checkpoint.
        counters: What it holds.
        slots: Slots of the model, of all tables.

    Raises:
        UserError: Another version of this package counts more.
        DamagedCheckpointError: A count is missing, or is none.
    """
    if others := sorted(counters.keys() - {"tokens", "seconds", "losses", "reads", "lines"}):
        raise UserError(
            f"{folder} counts {', '.join(others)} too. hint: go on with the version of "
            "memory-layers that wrote it, or choose another --out"
        )
    reads, losses = counters.get("reads"), counters.get("losses")
    right = {
        "tokens": _is_count(counters.get("tokens")),
        "seconds": _is_number(counters.get("seconds")),
        "losses": isinstance(losses, list) and all(map(_is_number, losses)),
        # Earlier versions have no lines, and those before them no reads.
        "reads": reads is None
        or (
            isinstance(reads, Tensor)
            and (reads.dtype, reads.shape) == (torch.int64, (slots,))
            and bool((reads >= 0).all())
        ),
        "lines": _is_count(counters.get("lines", 0)),
    }
    if wrong := [name for name, is_right in right.items() if not is_right]:
        reason = f"it has no count of {wrong[0]}, or another than is written there"
        raise damaged(folder, folder / STATE_FILE, reason)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: object) -> bool:
    return (type(value) is float and isfinite(value) and value >= 0) or _is_count(value)
