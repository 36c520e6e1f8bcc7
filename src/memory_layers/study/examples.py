"""A few questions with what a model answered, right and wrong, for a reader of the report."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memory_layers.data.encode import encode_texts
from memory_layers.data.facts import Probe
from memory_layers.data.prepare import PreparedData
from memory_layers.data.tokens import answer_tokens
from memory_layers.study.breakdown import answer_of

# Of each: right answers, and wrong ones.
COUNT = 3
_MOST_TOKENS = 24


def example_answers(
    model: PreTrainedModel,
    data: PreparedData,
    correct: Sequence[bool | int],
    asked: Sequence[int] | None = None,
) -> list[dict[str, Any]]:
    """Return held-out questions with the right answer and the model's, first those it got right.

    Args:
        model: A trained model.
        data: What it was trained on.
        correct: Whether each item that was asked was answered.
        asked: Their indices in the items of `data`. None: all.

    Returns:
        `relation`, `prompt`, `answer`, `said` and `correct` of up to COUNT right and COUNT wrong
        ones, the same in each run of the same answers.
    """
    picked = range(len(data.probes)) if asked is None else asked
    found = []
    for wanted in (True, False):
        fitting = [
            data.probes[index]
            for index, right in zip(picked, correct, strict=True)
            if bool(right) == wanted and data.probes[index].kind == "question_heldout"
        ]
        drawn = random.Random(0).sample(fitting, min(COUNT, len(fitting)))  # noqa: S311
        for probe in drawn:
            found.append(
                {
                    "relation": probe.relation,
                    "prompt": probe.text[: probe.answer_start].strip(),
                    "answer": answer_of(probe),
                    "said": _said(model, data.tokenizer, probe),
                    "correct": wanted,
                }
            )
    return found


@torch.no_grad()
def _said(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, probe: Probe) -> str:
    """Return how a model goes on, greedily, from the tokens that recall asks it with."""
    training = model.training
    model.eval()
    (encoded,) = encode_texts(tokenizer, [probe.text], offsets=True)
    first, _ = answer_tokens(probe.text, encoded.offsets, probe.answer_start, probe.answer_end)
    ids = [*encoded.ids[:first]]
    start = len(ids)
    while len(ids) < start + _MOST_TOKENS:
        row = torch.tensor([ids], device=model.device)
        token = int(model(input_ids=row, use_cache=False).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        ids.append(token)
    model.train(training)
    return str(tokenizer.decode(ids[start:])).strip()
