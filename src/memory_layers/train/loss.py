"""The loss of a batch. Next: loop.py, which takes steps down its gradient."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import PreTrainedModel

from memory_layers.data.tokens import IGNORE, Batch


def summed_loss(
    model: PreTrainedModel, batch: Batch, device: torch.device, *, bf16: bool
) -> Tensor:
    """Return the cross-entropy of a batch, added up over its targets, 0-dim.

    The head computes only the positions that predict a target: none of padding, and few where only
    the answers of facts are to be predicted.

    Args:
        model: A causal language model.
        batch: Packed rows.
        device: Of the model.
        bf16: Autocast of the dense part.
    """
    labels = batch.labels[:, 1:].flatten()
    wanted = (labels != IGNORE).nonzero()[:, 0]
    labels, places = labels[wanted].to(device), wanted.to(device)
    with (
        torch.autocast(device.type, torch.bfloat16, enabled=bf16),
        _positions_alone(model.get_output_embeddings(), places),
    ):
        logits = model(
            input_ids=batch.input_ids.to(device),
            position_ids=batch.position_ids.to(device),
            use_cache=False,
        ).logits
    return F.cross_entropy(logits[0].float(), labels, reduction="sum")


@contextmanager
def _positions_alone(head: nn.Module, places: Tensor) -> Generator[None]:
    """Give a head only some positions of its input, [B, L, D] → [1, number of places, D].

    Args:
        head: Called by the model on all positions.
        places: Positions counted over [B, L - 1]: the last of a row predicts nothing.
    """

    def select(_module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return inputs[0][:, :-1].flatten(0, 1)[places][None]

    # First of all: what divides the head among ranks has hooks too.
    handle = head.register_forward_pre_hook(select, prepend=True)
    try:
        yield
    finally:
        handle.remove()
