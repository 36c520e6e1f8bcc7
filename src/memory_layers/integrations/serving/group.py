"""Rows that are generated together, as one batch with its own cache, a step at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from memory_layers.integrations.serving import caches
from memory_layers.integrations.serving.errors import RequestError
from memory_layers.integrations.serving.row import Row, Scored
from memory_layers.integrations.serving.sampling import choose

# Tokens of prompts in a step, on a CPU and on others: other groups wait for as long as these take.
STEP_TOKENS_CPU, STEP_TOKENS = 128, 512
# Numbers of logits in a step that scores prompts.
STEP_LOGITS = 2**25


class Group:
    """A batch of rows.

    Args:
        model: In eval mode.
        rows: Whose prompts come next.
        ends: Token ids that end a text.
        cached_as: The argument of the model that takes a cache.
        batched: Whether the cache can hold rows of unlike length.

    Attributes:
        rows: Those that go on.
        done: Columns in the cache.
        generating: Whether all prompts are read.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[Row],
        ends: frozenset[int],
        cached_as: str,
        *,
        batched: bool,
    ) -> None:
        self.model, self.rows, self.ends, self.batched = model, list(rows), ends, batched
        columns = max(len(row.prompt) for row in rows)
        ids = torch.zeros(len(rows), columns, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, held, seen in zip(rows, ids, mask, strict=True):
            held[columns - len(row.prompt) :] = torch.tensor(row.prompt)
            seen[columns - len(row.prompt) :] = 1
        # [rows, columns] each: the tokens that are not in the cache, and what is no padding.
        self.ids, self.mask = ids.to(model.device), mask.to(model.device)
        self.done, self.generating = 0, False
        # Columns whose next tokens are scored, where the prompt is not read in parts.
        self.scored = 0
        self.cache = caches.new_cache(model)
        self.cached = {cached_as: self.cache}

    @property
    def columns(self) -> int:
        """Of the longest row, the token that comes next included."""
        return self.mask.shape[1]

    @property
    def most(self) -> int:
        """Most columns that the group may come to."""
        return self.columns + max((row.room for row in self.rows), default=0)

    def advance(self) -> None:
        """Read a part of the prompts, or generate one token of each row."""
        self._keep([n for n, row in enumerate(self.rows) if not row.left])
        if not self.rows:
            return
        scoring = not self.generating and any(row.score_prompt for row in self.rows)
        if scoring and not self.batched and self._score_part():
            return
        width = self._width(scoring)
        ids = self.ids[:, :width]
        end = self.done + width
        mask = self.mask[:, :end]
        inputs = {"input_ids": ids, "attention_mask": mask, **self.cached}
        if self.batched:
            inputs["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, self.done :]
        keep = width - self.scored if scoring else 1
        logits = self.model(**inputs, use_cache=True, logits_to_keep=keep).logits
        if scoring:
            self._score_prompts(logits, self.done + self.scored)
        self.done = end
        if width < self.ids.shape[1]:
            self.ids = self.ids[:, width:]
            return
        self.generating = True
        self._generate(logits[:, -1].float())

    def join(self, other: "Group") -> None:
        """Take over the rows of another group. Both are generating."""
        columns = max(self.columns, other.columns)
        caches.join(self.cache, other.cache, columns - 1)
        self.mask = torch.cat([_left_padded(group.mask, columns) for group in (self, other)])
        self.ids = torch.cat([self.ids, other.ids])
        self.done = columns - 1
        self.rows += other.rows
        other.rows = []

    def _width(self, scoring: bool) -> int:
        """Return how many columns come next."""
        if not self.batched:
            return self.ids.shape[1]
        tokens = STEP_TOKENS_CPU if self.ids.device.type == "cpu" else STEP_TOKENS
        if scoring:
            tokens = min(tokens, STEP_LOGITS // vocabulary_of(self.model))
        return min(self.ids.shape[1], max(1, tokens // len(self.rows)))

    def _keep(self, kept: list[int]) -> None:
        """Drop the other rows, and columns that have padding alone."""
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[n] for n in kept]
        if not kept:
            return
        index = torch.tensor(kept, device=self.ids.device)
        self.ids, self.mask = self.ids[index], self.mask[index]
        padding = min(self.done, int((self.mask.amax(0) > 0).int().argmax()))
        self.mask = self.mask[:, padding:]
        self.done -= padding
        caches.select(self.cache, kept, self.done)

    def _score_part(self) -> bool:
        """Score a part of a prompt that is read whole, and return whether more than one is left.

        Many recurrent models go wrong where a prompt is read in parts, so it is read once for each.
        """
        part = max(1, STEP_LOGITS // vocabulary_of(self.model))
        if self.columns - self.scored <= part:
            return False
        places = torch.arange(self.scored, self.scored + part, device=self.ids.device)
        logits = self.model(self.ids, use_cache=False, logits_to_keep=places).logits
        self._score_prompts(logits, self.scored)
        self.scored += part
        return True

    def _score_prompts(self, logits: Tensor, first: int) -> None:
        """Score the tokens that follow each column of a part of the prompts, from the first on."""
        columns = self.columns
        for row, scores in zip(self.rows, logits, strict=True):
            if not row.score_prompt:
                continue
            if not row.prompt_scores:
                row.prompt_scores.append(Scored(row.prompt[0], None))
            # Of the column that comes first here, counted in the prompt of the row.
            begin = first - (columns - len(row.prompt))
            places = range(max(0, begin), min(begin + len(scores), len(row.prompt) - 1))
            following = [row.prompt[place + 1] for place in places]
            if following:
                part = scores[places.start - begin : places.stop - begin]
                row.prompt_scores += _scored(part.float(), following, row.top)

    def _generate(self, logits: Tensor) -> None:
        """Choose the next token of each row, from logits [rows, vocabulary]."""
        best = logits.argmax(-1).tolist()
        sound = torch.isfinite(logits.amax(-1)).tolist()
        kept, tokens = [], []
        for n, row in enumerate(self.rows):
            token = best[n]
            if not sound[n]:
                row.fail(RequestError("the model gives numbers that are not finite", status=500))
                continue
            if row.max_tokens == 0:
                row.tell("length")
                continue
            if row.sampling.changes or row.sampling.temperature:
                token = choose(logits[n], row.sampling, row.counts, row.random)
            score = Scored(token, None)
            if row.top is not None:
                (score,) = _scored(logits[n : n + 1], [token], row.top)
            if not row.take(token, score, ends=token in self.ends):
                kept.append(n)
                tokens.append(token)
        self._keep(kept)
        if tokens:
            self.ids = torch.tensor(tokens, device=logits.device)[:, None]
            self.mask = torch.cat([self.mask, torch.ones_like(self.ids)], dim=1)


def vocabulary_of(model: PreTrainedModel) -> int:
    """Return how many token ids a model has."""
    rows = model.get_input_embeddings().weight
    assert isinstance(rows, Tensor)
    return rows.shape[0]


def _scored(logits: Tensor, tokens: Sequence[int], top: int | None) -> list[Scored]:
    """Return tokens with their logprobs, from logits [tokens, vocabulary]."""
    logprobs = logits.log_softmax(-1)
    index = torch.tensor(tokens, device=logits.device)[:, None]
    own = logprobs.gather(1, index)[:, 0].tolist()
    best = logprobs.topk(min(top or 0, logits.shape[1]), dim=-1)
    return [
        Scored(token, logprob, tuple(zip(ids, values, strict=True)))
        for token, logprob, ids, values in zip(
            tokens, own, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]


def _left_padded(mask: Tensor, columns: int) -> Tensor:
    return torch.cat([mask.new_zeros(len(mask), columns - mask.shape[1]), mask], dim=1)
