"""Closed-book recall: does the model give the answer, exactly, under greedy decoding?"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional as F  # noqa: N812

from memory_layers.data.spans import answer_tokens
from memory_layers.evaluate.batches import by_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RecallItem(Protocol):
    """A text whose answer stands at a known place, such as data.facts.Probe."""

    @property
    def kind(self) -> str:
        """Kind of item, for the averages."""
        ...

    @property
    def relation(self) -> str:
        """Relation, for the averages."""
        ...

    @property
    def text(self) -> str:
        """The whole text, the answer included."""
        ...

    @property
    def answer_start(self) -> int:
        """Where the answer begins, in characters."""
        ...

    @property
    def answer_end(self) -> int:
        """Where the answer ends, in characters."""
        ...


@dataclass(frozen=True)
class ItemResult:
    """What the model did on one item.

    Attributes:
        correct: Every token of the answer, and the one that ends it, is the most likely one.
        nll: Negative log-likelihood of these tokens, in nats.
    """

    correct: bool
    nll: float


def recall_items(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    items: Sequence[RecallItem],
    *,
    special_tokens: bool = False,
) -> list[ItemResult]:
    """Ask every item and return the results in the order of the items: see recall_share."""
    results = recall_share(model, tokenizer, items, (0, 1), special_tokens=special_tokens)
    return [results[index] for index in range(len(items))]


@torch.no_grad()
def recall_share(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    items: Sequence[RecallItem],
    share: tuple[int, int],
    *,
    special_tokens: bool = False,
) -> dict[int, ItemResult]:
    """Ask a share of the items, and return the results by the number of the item.

    The token after the answer is asked for too: an answer that goes on is another answer. One
    forward pass decides: if each token is the most likely one after the right tokens before it,
    greedy decoding gives exactly this answer.

    Args:
        model: A causal language model.
        tokenizer: Its fast tokenizer.
        items: Texts with the character span of their answers.
        share: (n, of): the n-th of so many shares. All shares take the same number of passes, as
            ranks that hold a part of the model each must.
        special_tokens: Begin texts as the tokenizer does by default. Not so in our training.
    """
    reader, readers = share
    was_training = model.training
    model.eval()
    encoded = tokenizer(
        [item.text for item in items],
        add_special_tokens=special_tokens,
        return_offsets_mapping=True,
    )
    rows = []
    for index, item in enumerate(items):
        ids = [*encoded["input_ids"][index], tokenizer.eos_token_id]
        span = answer_tokens(
            item.text, encoded["offset_mapping"][index], item.answer_start, item.answer_end
        )
        rows.append((ids, span))
    results: dict[int, ItemResult] = {}
    tokens = [ids for ids, _ in rows]
    for part in by_length(tokens, len(tokenizer), times=readers):
        own = part[reader::readers]
        # Without an item of its own, a share repeats one to take part.
        outcomes = _ask(model, [rows[index] for index in own or part[:1]])
        results.update(zip(own, outcomes, strict=False))
    model.train(was_training)
    return results


def summarize_recall(items: Sequence[RecallItem], results: Sequence[ItemResult]) -> dict[str, Any]:
    """Average results by kind and by relation.

    Returns:
        recall: Share of correct items for each kind, and `by_relation` likewise.
        answer_nll: Mean nats of an answer, for each kind.
    """
    kinds: dict[str, list[ItemResult]] = defaultdict(list)
    relations: dict[str, dict[str, list[ItemResult]]] = defaultdict(lambda: defaultdict(list))
    for item, result in zip(items, results, strict=True):
        kinds[item.kind].append(result)
        relations[item.relation][item.kind].append(result)
    recall: dict[str, Any] = {kind: _share(found) for kind, found in sorted(kinds.items())}
    recall["by_relation"] = {
        relation: {kind: _share(found) for kind, found in sorted(by_kind.items())}
        for relation, by_kind in sorted(relations.items())
    }
    nll = {kind: sum(r.nll for r in found) / len(found) for kind, found in sorted(kinds.items())}
    return {"recall": recall, "answer_nll": nll}


def _share(results: Sequence[ItemResult]) -> float:
    return sum(result.correct for result in results) / len(results)


def _ask(
    model: "PreTrainedModel", rows: Sequence[tuple[list[int], tuple[int, int]]]
) -> list[ItemResult]:
    device = next(model.parameters()).device
    ids = torch.tensor([row for row, _ in rows], device=device)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    targets = ids[:, 1:]
    right = (logits.argmax(-1) == targets).tolist()
    nll = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").tolist()
    outcomes = []
    for n, (_, (low, high)) in enumerate(rows):
        # The first token of a text has nothing before it that could predict it.
        span = slice(max(low - 1, 0), high - 1)
        outcomes.append(ItemResult(all(right[n][span]), sum(nll[n][span])))
    return outcomes
