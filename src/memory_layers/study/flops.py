"""FLOPs of a token, counted by torch on a model of the same shape that holds no numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from memory_layers.layers.experts import ExpertChoice, RoutedExperts
from memory_layers.layers.walk import find_tables, freeze_keys
from memory_layers.models import build_model
from memory_layers.ops import flops as _formulas  # noqa: F401  (registers ours)
from memory_layers.train.config import RunConfig


def shape_of(run: RunConfig, vocab_size: int) -> PreTrainedModel:
    """Build the model of a run on the meta device: it has shapes and takes no memory.

    Args:
        run: The run.
        vocab_size: vocabulary_size of its tokenizer.
    """
    with torch.device("meta"):
        model = build_model(run.model.to_preset(), run.memory, run.moe, vocab_size=vocab_size)
    if not run.optim.train_keys:
        freeze_keys(model)
    return model


def forward_flops(model: PreTrainedModel, length: int, rows: int = 1) -> float:
    """Count the floating-point operations of a token in a forward pass: see count_flops."""
    twin, inputs = _twin(model, length, rows)
    _set_mode(twin, training=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        twin(**inputs, use_cache=False)
    return counter.get_total_flops() / (rows * length)


def count_flops(model: PreTrainedModel, length: int, rows: int = 1) -> tuple[float, float]:
    """Count the floating-point operations of a token, forward and in training.

    A model of the same config is run on the meta device: counts are the same on all devices and
    for all versions of torch, whichever kernel attention would use there. Attention is counted
    whole, the half that the causal mask takes away included.

    Args:
        model: With or without memory or experts. It is not run.
        length: L, tokens of a sequence.
        rows: Sequences of a batch. Experts that choose tokens share those of a batch: what is
            rounded up is less in a larger one.

    Returns:
        FLOPs per token of a forward pass, and of a forward and backward pass. The optimizer and
        what gradient checkpointing computes again are not counted.
    """
    twin, inputs = _twin(model, length, rows)
    _set_mode(twin, training=True)
    with FlopCounterMode(display=False) as counter:
        for table in find_tables(twin).values():
            # As MemoryAdamW trains it: its gradient is not multiplied out.
            table.claim(counter)
        twin(**inputs, use_cache=False).logits.sum().backward()
    return forward_flops(model, length, rows), counter.get_total_flops() / (rows * length)


def _twin(
    model: PreTrainedModel, length: int, rows: int
) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Return a model of the same config on the meta device, and inputs for it."""
    with torch.device("meta"):
        twin = type(model)(model.config)
        for ours, own in zip(twin.parameters(), model.parameters(), strict=True):
            ours.requires_grad_(own.requires_grad)
        ids = torch.zeros(rows, length, dtype=torch.int64)
        # transformers looks at the numbers of its own masks, and these tensors hold none.
        mask = torch.ones(rows, 1, length, length, dtype=torch.bool)
    return twin, {"input_ids": ids, "attention_mask": mask}


def _set_mode(twin: PreTrainedModel, *, training: bool) -> None:
    """Set a model on the meta device to training or evaluation, as far as that costs anything."""
    twin.train(training)
    for module in twin.modules():
        if isinstance(module, RoutedExperts):
            # As it is trained, which its capacity decides.
            module.train(isinstance(module, ExpertChoice))
            module.send = _Send(module)


class _Send:
    """RoutedExperts.send for tensors without numbers: all tokens go to the first expert.

    A token costs the same with any of them.
    """

    def __init__(self, layer: RoutedExperts) -> None:
        self._experts = layer.experts

    def __call__(self, x: Tensor, scale: Tensor, chosen: Tensor) -> Tensor:
        """As RoutedExperts.send."""
        pairs = chosen.numel()
        sizes: Sequence[int] = [pairs] + [0] * (len(self._experts.gate) - 1)
        tokens = torch.zeros(pairs, dtype=torch.int64, device=x.device)
        out = self._experts(x[tokens], scale.flatten()[:, None], list(sizes))
        return out.new_zeros(x.shape).index_add(0, tokens, out)
