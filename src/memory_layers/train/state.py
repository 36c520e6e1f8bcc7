"""What a checkpoint holds, by name: parameters, buffers, optimizer state; tables in row blocks.

Nothing is copied here: the tensors are those of the model and the optimizer, or views of them, so
that a checkpoint is written from them and loaded into them.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from memory_layers.common.errors import UserError
from memory_layers.layers import ValueTable
from memory_layers.layers.walk import find_tables
from memory_layers.optim import MemoryAdamW

# Loading or exporting a table holds a block or two of it beside the table.
BLOCK_BYTES = 64 * 2**20

_ROWS = "/rows-"


def model_tensors(model: nn.Module, block_bytes: int = BLOCK_BYTES) -> dict[str, Tensor]:
    """Return all that a model holds by name, tied parameters once.

    Args:
        model: With or without memory, sharded or not.
        block_bytes: Most bytes of a block of rows in full width.

    Returns:
        `model.NAME` for every parameter and persistent buffer, a tensor or DTensor. A value table
        is in blocks of rows: `model.NAME/rows-FIRST`, each [rows, V].
    """
    tables = _tables(model)
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if name in tables:
            tensors |= _row_blocks(f"model.{name}", tables[name], parameter.detach(), block_bytes)
        else:
            tensors[f"model.{name}"] = parameter.detach()
    persistent = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in persistent:
            tensors[f"model.{name}"] = buffer
    return tensors


def optimizer_tensors(
    model: nn.Module, optimizer: MemoryAdamW, block_bytes: int = BLOCK_BYTES
) -> dict[str, Tensor]:
    """Return the state of an optimizer by name. What has no state is left out.

    Args:
        model: What `optimizer` was built on.
        optimizer: Stepped or not.
        block_bytes: As for `model_tensors`.

    Returns:
        `optim.NAME.KIND`, where NAME is that of the parameter and KIND that of the state. State of
        a table is in blocks of rows: `optim.NAME.KIND/rows-FIRST`, [rows, V], or for state of one
        number a row [rows, 1] or [rows].
    """
    tables = _tables(model)
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                continue
            if name not in tables:
                tensors[f"optim.{name}.{kind}"] = value
                continue
            per_row = value.dim() == 1 or _is_row_state(optimizer, kind)
            tensors |= _row_blocks(
                f"optim.{name}.{kind}", tables[name], value, block_bytes, per_row=per_row
            )
    return tensors


def table_numbers(model: nn.Module, optimizer: MemoryAdamW) -> dict[str, dict[str, int | float]]:
    """Return the state of the tables that is not a tensor, by the name of the table's weight."""
    return {
        name: {k: v for k, v in optimizer.state[table.weight].items() if not isinstance(v, Tensor)}
        for name, table in _tables(model).items()
        if optimizer.state.get(table.weight)
    }


def make_optimizer_state(
    model: nn.Module,
    optimizer: MemoryAdamW,
    saved: Collection[str],
    numbers: Mapping[str, Mapping[str, int | float]],
) -> None:
    """Replace the state of an optimizer by an empty one, to be loaded into.

    Args:
        model: What `optimizer` was built on.
        optimizer: Changed in place.
        saved: Names that a checkpoint holds. A parameter without saved state stays without.
        numbers: What `table_numbers` returned.
    """
    tables = _tables(model)
    kinds: dict[str, list[str]] = {}
    for name in saved:
        if name.startswith("optim."):
            parameter, _, kind = whole_name(name).removeprefix("optim.").rpartition(".")
            kinds.setdefault(parameter, []).append(kind)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        # First, so that the old state of a table is gone before the new one is made.
        optimizer.state.pop(parameter, None)
        if name not in kinds or id(parameter) not in groups:
            continue
        group = groups[id(parameter)]
        if name in tables:
            optimizer.init_table_state(parameter)
            optimizer.state[parameter].update(numbers.get(name, {}))
        else:
            state = {kind: _empty_state(parameter, kind, group) for kind in kinds[name]}
            optimizer.state[parameter] = state


@dataclass
class SavedTensor:
    """A tensor of a checkpoint as a whole.

    Attributes:
        dtype: Its type.
        shape: Its full shape.
        blocks: Shapes of its blocks of rows by name, in order. One block if it is in one piece.
    """

    dtype: torch.dtype
    shape: tuple[int, ...] = ()
    blocks: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def in_rows(self) -> bool:
        """It belongs to a value table."""
        return any(_ROWS in name for name in self.blocks)

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return prod(self.shape) * self.dtype.itemsize


def saved_tensors(metadata: Metadata) -> dict[str, SavedTensor]:
    """List what a checkpoint holds, with the blocks of a table put together.

    Raises:
        ValueError: The blocks are not those of one table.
    """
    found: dict[str, SavedTensor] = {}
    for name in sorted(metadata.state_dict_metadata):
        entry = metadata.state_dict_metadata[name]
        if not isinstance(entry, TensorStorageMetadata):
            continue
        tensor = found.setdefault(whole_name(name), SavedTensor(entry.properties.dtype))
        size = tuple(entry.size)
        if _ROWS in name:
            rows, width = (tensor.shape[0], tensor.shape[1:]) if tensor.blocks else (0, size[1:])
            first = name.rpartition(_ROWS)[2]
            if not size or (first, size[1:], entry.properties.dtype) != (
                f"{rows:010d}", width, tensor.dtype,
            ):  # fmt: skip
                raise ValueError(f"{name} does not go on where the block before it ends")
            size = (rows + size[0], *width)
        elif tensor.blocks:
            raise ValueError(f"{name} is there as a whole and in blocks of rows")
        tensor.shape = size
        tensor.blocks[name] = tuple(entry.size)
    return found


def whole_name(name: str) -> str:
    """Return the name of the tensor that a block of rows belongs to. Other names stay."""
    return name.split(_ROWS)[0]


def check_fit(folder: Path, tensors: Mapping[str, Tensor], metadata: Metadata) -> None:
    """Refuse a checkpoint that does not hold exactly these tensors.

    Args:
        folder: The checkpoint, for the message.
        tensors: What is to be loaded.
        metadata: That of the checkpoint.

    Raises:
        UserError: Tensors are missing, surplus, or of another shape or type.
    """
    saved = metadata.state_dict_metadata
    problems = {
        "missing": [name for name in tensors if name not in saved],
        "surplus": [name for name in saved if name not in tensors],
        "different": [
            f"{name} ({_sizes(saved[name])}, here {_sizes(tensor)})"
            for name, tensor in tensors.items()
            if name in saved and _sizes(saved[name]) != _sizes(tensor)
        ],
    }
    said = [
        f"{len(names)} {kind}, such as {min(names)}" for kind, names in problems.items() if names
    ]
    if said:
        raise UserError(
            f"{folder} does not fit this model and optimizer, tensors: {'; '.join(said)}. "
            "hint: resume with the settings that it was saved with, or choose another --out"
        )


def _tables(model: nn.Module) -> dict[str, ValueTable]:
    return {f"{name}.weight".lstrip("."): table for name, table in find_tables(model).items()}


def _row_blocks(
    name: str, table: ValueTable, tensor: Tensor, block_bytes: int, *, per_row: bool = False
) -> Iterator[tuple[str, Tensor]]:
    # By the full width: the same blocks on any number of ranks.
    width = 1 if per_row else table.value_dim
    rows = max(1, block_bytes // (width * tensor.element_size()))
    for first in range(0, len(tensor), rows):
        block = table.global_view(tensor[first : first + rows], per_row=per_row)
        yield f"{name}{_ROWS}{first:010d}", block


def _is_row_state(optimizer: MemoryAdamW, kind: str) -> bool:
    group = optimizer.memory_group or {}
    return kind == "exp_avg_sq" and group.get("value_state") == "row"


def _empty_state(parameter: Tensor, kind: str, group: Mapping[str, Any]) -> Tensor:
    if kind != "step":
        return torch.zeros_like(parameter, memory_format=torch.preserve_format)
    # As torch's AdamW has it: beside the parameter only for the kernels that read it there.
    beside = group.get("fused") or group.get("capturable")
    return torch.zeros((), dtype=torch.float32, device=parameter.device if beside else "cpu")


def _sizes(tensor: Any) -> str:  # noqa: ANN401
    dtype = tensor.dtype if isinstance(tensor, Tensor) else tensor.properties.dtype
    size = tensor.shape if isinstance(tensor, Tensor) else tensor.size
    return f"{list(size)} {str(dtype).removeprefix('torch.')}"
