"""The parameter groups of a model: decayed, not decayed, tables."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from memory_layers.layers.walk import find_tables


def groups_of(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trainable parameters of a model in groups, for an optimizer.

    Matrices are decayed. Vectors (norms, biases, gains, sinks) are not, also where each head has
    one, nor is any table: those come last, in a group of their own.

    Args:
        model: With or without memory layers.
        weight_decay: Of matrices.
    """
    tables = [table for table in find_tables(model).values() if table.weight.requires_grad]
    for table in tables:
        table.mark_weight()
    weights = {id(table.weight): table.weight for table in tables}
    dense = [p for p in model.parameters() if p.requires_grad and id(p) not in weights]
    of_heads = ("keys.gain", "keys.sink_key")
    vectors = {id(p) for name, p in model.named_parameters() if name.endswith(of_heads)}
    decayed = [p for p in dense if p.dim() >= 2 and id(p) not in vectors]
    plain = [p for p in dense if p.dim() < 2 or id(p) in vectors]
    groups: list[dict[str, Any]] = [
        *({"params": same, "weight_decay": weight_decay} for same in by_mesh(decayed)),
        *({"params": same, "weight_decay": 0.0} for same in by_mesh(plain)),
        {"params": list(weights.values())},
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
