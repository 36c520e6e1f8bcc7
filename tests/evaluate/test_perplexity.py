"""Loss on text kept out: the mean over all tokens, not over pieces."""

import math

import pytest
import torch
from tiny_models import tiny_llama

from memory_layers.evaluate.perplexity import summarize_loss, text_loss


def test_mean_over_tokens() -> None:
    model = tiny_llama().train()
    pieces = [torch.randint(40, (length,)) for length in (2, 9, 5)]
    result = summarize_loss(*text_loss(model, pieces, (0, 1)))
    assert model.training
    model.eval()
    losses = []
    for piece in pieces:
        logits = model(input_ids=piece[None]).logits[0].detach().log_softmax(-1)
        losses += [-float(logits[n, piece[n + 1]]) for n in range(len(piece) - 1)]
    assert result["tokens"] == len(losses) == 13
    assert result["nll"] == pytest.approx(sum(losses) / 13, rel=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(result["nll"]))


@pytest.mark.parametrize("shares", [2, 3, 5])
def test_shares_make_the_whole(shares: int) -> None:
    model = tiny_llama()
    pieces = [torch.randint(40, (length,)) for length in (2, 9, 5)]
    whole = text_loss(model, pieces, (0, 1))
    parts = [text_loss(model, pieces, (n, shares)) for n in range(shares)]
    assert sum(tokens for _, tokens in parts) == whole[1]
    assert sum(loss for loss, _ in parts) == pytest.approx(whole[0])
