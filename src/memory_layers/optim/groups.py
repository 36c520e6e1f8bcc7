"""Which parameter belongs to which group: tables, decayed, not decayed."""

from collections.abc import Sequence

from torch import nn

from memory_layers.layers import ValueTable


def find_tables(model: nn.Module) -> list[ValueTable]:
    """Return every value table of a model once, trainable ones only."""
    tables = [module for module in model.modules() if isinstance(module, ValueTable)]
    return [table for table in tables if table.weight.requires_grad]


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split the trainable dense parameters into those with weight decay and those without.

    Matrices are decayed. Vectors (norms, biases, gains, sinks) are not, also where each head has
    one, nor is any table.

    Args:
        model: A model with or without memory layers.
    """
    tables = {id(table.weight) for table in find_tables(model)}
    dense = [p for p in model.parameters() if p.requires_grad and id(p) not in tables]
    of_heads = ("keys.gain", "keys.sink_key")
    vectors = {id(p) for name, p in model.named_parameters() if name.endswith(of_heads)}
    decayed = [p for p in dense if p.dim() >= 2 and id(p) not in vectors]
    plain = [p for p in dense if p.dim() < 2 or id(p) in vectors]
    return decayed, plain


def by_mesh(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Split parameters by the device mesh they are distributed over, None for plain tensors.

    Operations on a list of DTensors need them on one mesh.
    """
    split: dict[object, list[nn.Parameter]] = {}
    for parameter in parameters:
        split.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    return list(split.values())
