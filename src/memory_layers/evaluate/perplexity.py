"""Loss on running text that was kept out of training."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def text_loss(
    model: "PreTrainedModel", pieces: Sequence[Tensor], share: tuple[int, int]
) -> tuple[float, int]:
    """Measure the loss of a model on pieces of text, or on a share of them, each on its own.

    Args:
        model: A causal language model.
        pieces: Token ids, [L] each with L >= 2. The first token of a piece is not predicted.
        share: (n, of): the n-th of so many shares. All shares take the same number of passes.

    Returns:
        Sum of the negative log-likelihoods, in nats, and tokens that were predicted.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    reader, readers = share
    total, tokens = 0.0, 0
    for first in range(0, len(pieces), readers):
        counts = first + reader < len(pieces)
        # Without a piece of its own, a share repeats one to take part.
        ids = pieces[first + reader if counts else first].to(device)[None]
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        if counts:
            total += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            tokens += ids.shape[1] - 1
    model.train(was_training)
    return total, tokens


def summarize_loss(total: float, tokens: int) -> dict[str, float]:
    """Return mean loss and perplexity.

    Args:
        total: Sum of the negative log-likelihoods, in nats.
        tokens: Tokens that were predicted.

    Returns:
        nll: Mean negative log-likelihood of a token, in nats.
        perplexity: exp(nll).
        tokens: Tokens that were predicted.
    """
    nll = total / tokens
    return {"nll": nll, "perplexity": math.exp(nll), "tokens": tokens}
