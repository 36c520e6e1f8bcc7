"""WRITE: group the factors of a gradient by row, and step only the touched rows."""

from memory_layers.ops.write.api import row_adagrad_, row_adamw_, row_sgd_
from memory_layers.ops.write.gradient import RowGradient, group_by_row, row_norm, row_sums

__all__ = [
    "RowGradient",
    "group_by_row",
    "row_adagrad_",
    "row_adamw_",
    "row_norm",
    "row_sgd_",
    "row_sums",
]
