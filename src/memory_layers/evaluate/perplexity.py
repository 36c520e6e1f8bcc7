"""Loss on running text that was kept out of training."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@torch.no_grad()
def perplexity(model: "PreTrainedModel", pieces: Iterable[Tensor]) -> dict[str, float]:
    """Measure the loss of a model on pieces of text, each on its own.

    Args:
        model: A causal language model.
        pieces: Token ids, [L] each with L >= 2. The first token of a piece is not predicted.

    Returns:
        nll: Mean negative log-likelihood of a token, in nats.
        perplexity: exp(nll).
        tokens: Tokens that were predicted.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    for piece in pieces:
        ids = piece.to(device)[None]
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
        total += float(F.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        tokens += len(piece) - 1
    model.train(was_training)
    nll = total / tokens
    return {"nll": nll, "perplexity": math.exp(nll), "tokens": tokens}
