"""Which tokens of what is taught the memory may speak at: names, and words that are like names."""

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from memory_layers.learn.sources import Example, LearnData
from memory_layers.learn.turns import Frame, frame_of_turns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A space, as tokenizers write it at the beginning of a word.
_SPACES = "\u0120\u2581"
# Behind them a word has a capital that is no name.
_ENDS = frozenset("\n.?!:\u3002\uff1f\uff01")


@dataclass(frozen=True)
class Cue:
    """A token of an example that the memory may speak at.

    Attributes:
        example: Number of the example.
        place: Of the token.
        first: Where the name begins. Without a name, the token itself.
        name: The same for tokens that stand for the same, where that is known.
        last: How far at the end of the name or text it stands: 0 is the end.
    """

    example: int
    place: int
    first: int
    name: str
    last: int


def find_cues(
    data: LearnData, tokenizer: "PreTrainedTokenizerBase", usual: Container[str]
) -> list[Cue]:
    """Return the tokens that answers may hang on.

    Args:
        data: What is taught. Of a fact, they are the tokens of its subject. Of a prompt or a
            running text, those of words that are written like names, or else of rare words, or else
            all. What all conversations begin with is not looked at, nor what a chat template writes
            between turns.
        tokenizer: That made the tokens.
        usual: Words of other text, as `words_of` has them. They are not rare.
    """
    frame = frame_of_turns(tokenizer)
    begin = _shared_turns(data, tokenizer, frame)
    found = []
    for n, example in enumerate(data.examples):
        if example.form == "chat":
            between = _places_of(frame or (), example.ids.tolist())
            places = [n for n in range(begin, len(example.ids)) if n not in between]
        else:
            places = list(range(1, len(example.ids)))
        found += _cues(n, example, places, data, tokenizer, usual)
    return found


def words_of(texts: Sequence[str]) -> set[str]:
    """Return the words of texts, in lower case."""
    return {word for text in texts for word in re.findall(r"\w+", text.casefold())}


def at_names(ids: Tensor, names: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> Tensor:
    """Return which tokens of a text are of one of some names: bool [L]."""
    found = torch.zeros(len(ids), dtype=torch.bool)
    text = str(tokenizer.decode(ids))
    for name in names:
        if not name or name not in text:
            continue
        begin = 0
        while span := _span_of(name, ids[begin:].numpy(), tokenizer):
            first, end = span
            found[begin + first : begin + end] = True
            begin += end
    return found


def _places_of(parts: Sequence[Sequence[int]], ids: Sequence[int]) -> set[int]:
    """Return where in a text any of some parts stands."""
    return {
        place
        for part in parts
        for start in range(len(ids))
        if ids[start : start + len(part)] == part
        for place in range(start, start + len(part))
    }


def _shared_turns(
    data: LearnData, tokenizer: "PreTrainedTokenizerBase", frame: Frame | None
) -> int:
    """Return how many tokens all conversations begin with, up to where a turn begins."""
    chats = {example.group: example.ids for example in data.examples if example.form == "chat"}
    rows = [ids.tolist() for ids in chats.values()]
    if len(rows) == 1:
        # The default turn of the system is all that it can share.
        rows.append(frame.opening if frame else [])
    special = set(tokenizer.all_special_ids)
    begin = 1
    for place, tokens in enumerate(zip(*rows, strict=False), 1):
        if len(set(tokens)) > 1:
            break
        if tokens[0] in special:
            begin = place
    return begin


def _cues(
    number: int,
    example: Example,
    places: Sequence[int],
    data: LearnData,
    tokenizer: "PreTrainedTokenizerBase",
    usual: Container[str],
) -> Iterator[Cue]:
    answer = example.spans[0][0]
    subject = data.groups[example.group].subject
    span = _span_of(subject, example.ids[:answer], tokenizer) if subject else None
    if span is not None:
        first, end = span
        for place in range(first, end):
            yield Cue(number, place, first, subject, end - 1 - place)
        return
    # In running text each token may say what follows, otherwise what stands before answers does.
    is_text = example.form == "text"
    last = example.spans[-1][1] - 1 if is_text else example.spans[-1][0]
    learned = {n for low, high in example.spans for n in range(low, high)} if not is_text else ()
    special = set(tokenizer.all_special_ids)
    places = [
        place
        for place in places
        if place < last and int(example.ids[place]) not in special and place not in learned
    ]
    ranks = _ranks(example.ids, tokenizer, usual)
    best = max((ranks[place] for place in places), default=0)
    for place in places:
        if ranks[place] == best:
            yield Cue(number, place, place, "", last - 1 - place)


def _ranks(
    ids: np.ndarray, tokenizer: "PreTrainedTokenizerBase", usual: Container[str]
) -> list[int]:
    """Tell which tokens are of names (2), of rare words (1), or of what any text may have (0)."""
    numbers = ids.tolist()
    special = set(tokenizer.all_special_ids)
    pieces = tokenizer.convert_ids_to_tokens(numbers)
    shown = [str(tokenizer.decode([n])).strip(" ") for n in numbers]
    letters = [
        # A part of a character is of a letter most often.
        n not in special and any(c.isalnum() or c == "\ufffd" for c in text)
        for n, text in zip(numbers, shown, strict=True)
    ]
    words: list[list[int]] = []
    for n, piece in enumerate(pieces):
        if words and letters[n] and letters[n - 1] and piece[0] not in _SPACES:
            words[-1].append(n)
        else:
            words.append([n])
    ranks, is_first = [0] * len(numbers), True
    for places in words:
        word = str(tokenizer.decode([numbers[n] for n in places])).strip(" ")
        if letters[places[0]]:
            # The first word of a turn or a sentence has a capital too.
            is_plain = word.islower() or (is_first and word.istitle())
            rank = 1 if is_plain else 2
            is_usual = is_plain and len(places) == 1 and word.isalpha()
            is_usual = is_usual and word.casefold() in usual
            for n in places:
                ranks[n] = 0 if is_usual else rank
        # A space may be a token of its own.
        if word:
            ends = numbers[places[0]] in special or not _ENDS.isdisjoint(word)
            is_first = ends and not letters[places[0]]
    return ranks


def _span_of(
    text: str, ids: np.ndarray, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[int, int] | None:
    """Return the first token of a text that is part of another, and the end behind its last."""

    def has(first: int, end: int) -> bool:
        return text in tokenizer.decode(ids[first:end].tolist())

    if not has(0, len(ids)):
        return None
    end = _least(lambda count: has(0, count), len(ids))
    length = _least(lambda count: has(end - count, end), end)
    return end - length, end


def _least(holds, most: int) -> int:  # noqa: ANN001
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
