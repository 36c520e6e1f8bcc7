"""READ: weighted sums of table rows, and dot products with them."""

from memory_layers.ops.read.api import gather_dot, gather_sum, scatter_sum

__all__ = ["gather_dot", "gather_sum", "scatter_sum"]
