"""The parameter groups of a model: decayed, not decayed, tables."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from memory_layers.layers.values import table_of
from memory_layers.layers.walk import find_tables


def groups_of(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trainable parameters of a model in groups, for an optimizer.

    Matrices are decayed. Vectors (norms, biases, gains, sinks) are not, also where each head has
    one, nor is any table: those come last, in a group of their own.

    Args:
        model: With or without memory layers.
        weight_decay: Of matrices.
    """
    for table in find_tables(model).values():
        table.mark_weight()
    decayed, plain, tables = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if table_of(parameter) is not None:
            tables.append(parameter)
        elif parameter.dim() < 2 or name.endswith(("keys.gain", "keys.sink_key")):
            plain.append(parameter)
        else:
            decayed.append(parameter)
    groups: list[dict[str, Any]] = [
        *({"params": same, "weight_decay": weight_decay} for same in by_mesh(decayed)),
        *({"params": same, "weight_decay": 0.0} for same in by_mesh(plain)),
        {"params": tables},
    ]
    return [group for group in groups if group["params"]]


def by_mesh(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Split parameters by the device mesh they are distributed over, None for plain tensors.

    Operations on a list of DTensors need them on one mesh.
    """
    split: dict[object, list[nn.Parameter]] = {}
    for parameter in parameters:
        split.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    return list(split.values())
