"""FIND: the best of M * M slots from the scores of 2 * M sub-keys."""

from memory_layers.ops.find.api import product_key_topk

__all__ = ["product_key_topk"]
