"""How likely the right answer is among other answers, each read in its place in the whole text.

All texts of an item are one row. Its tokens are a tree, in which texts share the tokens with which
they begin: a token attends to those that lead to it, at the positions that they have in the text.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from memory_layers.data.encode import encode_texts
from memory_layers.data.facts import Probe, collection_paused
from memory_layers.data.tokens import answer_tokens
from memory_layers.evaluate.batches import by_length, logits_from
from memory_layers.evaluate.positions import check_lengths

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Their texts are in memory together.
ITEMS_AT_A_TIME = 4000
# Rows are padded to multiples of it, so that many have the same length.
_STEP = 8


@torch.no_grad()
@collection_paused()
def choice_probabilities(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    items: Sequence[Probe],
    candidates: Sequence[Sequence[str]],
) -> list[float]:
    """Return the probability of the first candidate of each item among its candidates.

    That is a softmax over the log-probabilities of the candidates: of the tokens of each and of the
    one that ends it, as in recall. What a model thinks of other texts does not count.

    A token is computed once for all candidates that begin with it. Results do not depend on what
    else is asked: in evaluation every layer of ours, experts of both kinds too, computes each token
    on its own.

    Args:
        model: A causal language model, of an attention that takes a mask.
        tokenizer: Its fast tokenizer.
        items: Texts with the character span of their answers.
        candidates: Different texts to stand there, for each item. The first is the right one.

    Raises:
        UserError: A text is longer than the model can read.
    """
    was_training = model.training
    model.eval()
    found: list[float] = []
    for low in range(0, len(items), ITEMS_AT_A_TIME):
        part = slice(low, low + ITEMS_AT_A_TIME)
        trees = [_tree(*texts) for texts in _encode(tokenizer, items[part], candidates[part])]
        longest = [range(max(tree.positions) + 1) for tree in trees]
        # And the token that ends the last one.
        check_lengths(model, [item.text for item in items[part]], longest, 1)
        sizes = [range(-(-len(tree.ids) // _STEP) * _STEP) for tree in trees]
        shares = [0.0] * len(trees)
        for members in by_length(sizes, len(tokenizer)):
            scores = _scores(model, [trees[n] for n in members], len(sizes[members[0]]))
            for n, own in zip(members, scores, strict=True):
                shares[n] = float(own.softmax(0)[0])
        found += shares
    model.train(was_training)
    return found


class _Text(NamedTuple):
    """A text, or its end, and where in it the answer is, in characters."""

    text: str
    start: int
    end: int


class _Row(NamedTuple):
    """Token ids of a _Text, the end of the text included, and the span of those asked for."""

    ids: Sequence[int]
    span: tuple[int, int]


class _Tree(NamedTuple):
    """The tokens of several texts, of which those that begin alike share the beginning.

    Attributes:
        ids: Token ids, each after the one before it in its texts.
        parents: The place of that one in `ids`. -1: there is none.
        positions: In the texts.
        asked: Places in `ids`, the token whose probability after it counts, and for which text.
    """

    ids: list[int]
    parents: list[int]
    positions: list[int]
    asked: list[tuple[int, int, int]]


def _encode(
    tokenizer: "PreTrainedTokenizerBase",
    items: Sequence[Probe],
    candidates: Sequence[Sequence[str]],
) -> Iterator[tuple[list[int], list[_Row]]]:
    """Yield for each item tokens with which all of its texts begin, and what follows in each.

    From the word before the answer on, most texts are those of other items. Such ends are encoded
    once. An item whose text has other tokens when it is cut there is encoded whole.
    """
    splitter = tokenizer.backend_tokenizer.pre_tokenizer
    ends, heads = [], []
    for item, answers in zip(items, candidates, strict=True):
        cut = item.text.rfind(" ", 0, len(item.text[: item.answer_start].rstrip()))
        # Elsewhere a token may join what is before the cut and after it.
        words = splitter.pre_tokenize_str(item.text) if splitter and cut > 0 else ()
        cut = cut if any(start == cut for _, (start, _) in words) else 0
        ends.append([_cut(item, answer, cut) for answer in (item.answers[0], *answers)])
    known = _rows(tokenizer, ends)
    wholes = encode_texts(tokenizer, [item.text for item in items], offsets=True)
    for n, (ids, offsets) in enumerate(wholes):
        cut = items[n].answer_start - ends[n][0].start
        head = [token for token, (start, _) in zip(ids, offsets, strict=True) if start < cut]
        # Some tokenizers begin every text with a mark.
        if [*head, *known[ends[n][0]].ids[:-1]] != [*ids]:
            head, answers = [], (items[n].answers[0], *candidates[n])
            ends[n] = [_cut(items[n], answer, 0) for answer in answers]
            known |= _rows(tokenizer, [ends[n]])
        heads.append(head)
    for head, (_, *own) in zip(heads, ends, strict=True):
        yield head, [known[end] for end in own]


def _cut(item: Probe, answer: str, cut: int) -> _Text:
    """Return the text of an item from a character on, with this answer."""
    before = item.text[cut : item.answer_start]
    text = before + answer + item.text[item.answer_end :]
    return _Text(text, len(before), len(before) + len(answer))


def _rows(
    tokenizer: "PreTrainedTokenizerBase", ends: Iterable[Iterable[_Text]]
) -> dict[_Text, _Row]:
    texts = [*dict.fromkeys(chain.from_iterable(ends))]
    encoded = encode_texts(tokenizer, [text.text for text in texts], offsets=True)
    return {
        text: _Row([*ids, tokenizer.eos_token_id], answer_tokens(text.text, offsets, *text[1:]))
        for text, (ids, offsets) in zip(texts, encoded, strict=True)
    }


def _tree(head: list[int], rows: Sequence[_Row]) -> _Tree:
    """Return the tree of texts that all begin with `head` and go on as the rows do."""
    last = len(head) - 1
    tree = _Tree([*head], [*range(-1, last)], [*range(len(head))], [])
    known: dict[tuple[int, int], int] = {}
    for number, (ids, (low, high)) in enumerate(rows):
        at = last
        for n, token in enumerate(ids[:high]):
            # The first token of a text has nothing before it that could predict it.
            if n >= low and at >= 0:
                tree.asked.append((at, token, number))
            if n < high - 1:
                before, at = at, known.setdefault((at, token), len(tree.ids))
                if at == len(tree.ids):
                    tree.ids.append(token)
                    tree.parents.append(before)
                    tree.positions.append(len(head) + n)
    return tree


def _scores(model: "PreTrainedModel", trees: Sequence[_Tree], size: int) -> list[Tensor]:
    """Return the log-probabilities of the texts of each tree, [texts] in fp64.

    Args:
        model: In eval mode.
        trees: Those that share the pass.
        size: Tokens of a row, at least those of any tree.
    """
    ids = torch.zeros(len(trees), size, dtype=torch.int64)
    positions = torch.zeros_like(ids)
    seen = torch.eye(size, dtype=torch.bool).repeat(len(trees), 1, 1)
    for n, tree in enumerate(trees):
        ids[n, : len(tree.ids)] = torch.tensor(tree.ids)
        positions[n, : len(tree.ids)] = torch.tensor(tree.positions)
        own = seen[n].numpy()
        for place, before in enumerate(tree.parents):
            if before >= 0:
                own[place] |= own[before]
    device = next(model.parameters()).device
    mask = torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, -torch.inf)
    first = min(place for tree in trees for place, _, _ in tree.asked)
    logits = logits_from(
        model, ids.to(device), first,
        position_ids=positions.to(device), attention_mask=mask[:, None].to(device),
    )  # fmt: skip
    likelihood = logits.float().log_softmax(-1)
    scores = []
    for n, tree in enumerate(trees):
        place, token, text = torch.tensor(tree.asked, device=device).T
        picked = likelihood[n, place - first, token].double()
        scores.append(picked.new_zeros(int(text.max()) + 1).index_add(0, text, picked))
    return scores
