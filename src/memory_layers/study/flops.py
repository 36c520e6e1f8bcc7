"""FLOPs of a token, counted by torch on the real model."""

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from memory_layers.models import memory_layers_of
from memory_layers.ops import flops as _formulas  # noqa: F401  (registers ours)


def count_flops(model: PreTrainedModel, length: int) -> tuple[float, float]:
    """Count the floating-point operations of a token, forward and in training.

    Args:
        model: With or without memory. Its gradients are used and dropped.
        length: L, tokens of the sequence that is run.

    Returns:
        FLOPs per token of a forward pass, and of a forward and backward pass. The optimizer is
        not counted.
    """
    ids = torch.zeros(1, length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    forward = counter.get_total_flops() / length
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    model.zero_grad()
    for layer in memory_layers_of(model):
        layer.values.pending.clear()
    return forward, counter.get_total_flops() / length
