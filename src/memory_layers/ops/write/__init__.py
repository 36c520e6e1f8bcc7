"""WRITE: group the factors of a gradient by row, and step only the touched rows."""

from memory_layers.ops.write.api import row_step_
from memory_layers.ops.write.gradient import RowGradient, group_by_row, row_norm, row_sums
from memory_layers.ops.write.state import RowState

__all__ = [
    "RowGradient",
    "RowState",
    "group_by_row",
    "row_norm",
    "row_step_",
    "row_sums",
]
