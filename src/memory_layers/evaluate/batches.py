"""Rows of tokens that share a pass: those of one length, which need no padding."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Logits of a pass: 2 GiB in fp32.
MOST_LOGITS = 2**29
MOST_TOKENS = 8192


def by_length(
    rows: Sequence[Sequence[int]], vocab_size: int, *, extra: int = 0, times: int = 1
) -> Iterator[list[int]]:
    """Yield the numbers of rows that go together, so many that their logits fit in memory.

    Args:
        rows: Token ids.
        vocab_size: Logits of a token.
        extra: Tokens that are still to come.
        times: Take so many times as many: for readers who share them.
    """
    lengths = defaultdict(list)
    for number, row in enumerate(rows):
        lengths[len(row)].append(number)
    tokens = min(MOST_TOKENS, MOST_LOGITS // vocab_size)
    for length, members in lengths.items():
        step = max(1, tokens // (length + extra)) * times
        for low in range(0, len(members), step):
            yield members[low : low + step]


@dataclass(frozen=True)
class SpanScore:
    """What a model makes of some tokens of a text, given the right ones before each.

    Attributes:
        correct: Each is the most likely one.
        nll: Their negative log-likelihood, in nats.
        last: The most likely token in the place of the last one. None: one before it is wrong.
    """

    correct: bool
    nll: float
    last: int | None = None


def score_spans(
    model: "PreTrainedModel", rows: Sequence[tuple[Sequence[int], tuple[int, int]]]
) -> list[SpanScore]:
    """Score a span of tokens of each row, all rows in one pass.

    Args:
        model: A causal language model.
        rows: Token ids, as many in each, and the span: its first token and the one after it.
    """
    ids = torch.tensor([row for row, _ in rows], device=next(model.parameters()).device)
    # The first token of a text has nothing before it that could predict it.
    first = min(max(low - 1, 0) for _, (low, _) in rows)
    logits = logits_from(model, ids, first)[:, :-1].float()
    targets = ids[:, first + 1 :]
    likely = logits.argmax(-1)
    right = (likely == targets).tolist()
    nll = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").tolist()
    scores = []
    for n, (_, (low, high)) in enumerate(rows):
        span = slice(max(low - 1, 0) - first, high - 1 - first)
        last = int(likely[n, high - 2 - first]) if all(right[n][span][:-1]) else None
        scores.append(SpanScore(all(right[n][span]), sum(nll[n][span]), last))
    return scores


def logits_from(model: "PreTrainedModel", ids: Tensor, first: int, **inputs: Tensor) -> Tensor:
    """Return the logits after each token from a place on, without computing those before it.

    Args:
        model: A causal language model.
        ids: [B, L] int64.
        first: The place.
        **inputs: More for the model.

    Returns:
        [B, L - first, vocabulary].
    """
    if "logits_to_keep" not in signature(model.forward).parameters:
        return model(input_ids=ids, use_cache=False, **inputs).logits[:, first:]
    keep = ids.shape[1] - first
    return model(input_ids=ids, use_cache=False, logits_to_keep=keep, **inputs).logits
