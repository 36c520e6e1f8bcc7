"""Choose the next token of a row. What is drawn depends on the row and its seed alone."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Tokens in which top_p is looked for first.
FEW = 1024


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. The fields are those of the request."""

    temperature: float = 0.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def changes(self) -> bool:
        """Whether other scores than the model's decide."""
        return bool(self.presence_penalty or self.frequency_penalty or self.bias)


def choose(
    logits: Tensor, sampling: Sampling, generated: Counter[int], source: random.Random
) -> int:
    """Choose a token.

    Args:
        logits: [vocabulary] fp32, of the model.
        sampling: How.
        generated: How often each token was generated so far: penalties count these.
        source: Of one number for each token that is drawn.
    """
    if sampling.changes:
        logits = _changed(logits, sampling, generated)
    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = (logits - logits.max()).double() / sampling.temperature
    chances = torch.softmax(scaled, dim=-1)
    tokens = None
    if sampling.top_p < 1:
        chances, tokens = _likeliest(chances, sampling.top_p)
    sums = chances.cumsum(-1)
    place = torch.searchsorted(sums, sums[-1] * source.random(), right=True)
    place = place.clamp(max=len(sums) - 1)
    return int(place if tokens is None else tokens[place])


def _likeliest(chances: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return the chances of the likeliest tokens up to the one that reaches top_p, and their ids.

    Equal chances are in the order of the ids.
    """
    # To sort all of a vocabulary takes longer than many models do, and is seldom needed.
    tokens = chances.topk(min(FEW, len(chances))).indices.sort().values
    if chances[tokens].sum() < top_p:
        tokens = torch.arange(len(chances), device=chances.device)
    best, order = chances[tokens].sort(descending=True, stable=True)
    # At least one.
    count = 1 + int((best.cumsum(-1)[:-1] < top_p).sum())
    return best[:count], tokens[order[:count]]


def _changed(logits: Tensor, sampling: Sampling, generated: Counter[int]) -> Tensor:
    changes = dict(sampling.bias)
    if sampling.presence_penalty or sampling.frequency_penalty:
        for token, count in generated.items():
            penalty = sampling.presence_penalty + count * sampling.frequency_penalty
            changes[token] = changes.get(token, 0.0) - penalty
    tokens = torch.tensor(list(changes), dtype=torch.long, device=logits.device)
    added = torch.tensor(list(changes.values()), dtype=logits.dtype, device=logits.device)
    return logits.index_add(0, tokens, added)
