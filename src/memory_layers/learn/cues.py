"""Which tokens of what is taught the memory may speak at: names, and words that are like names."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from memory_layers.learn.sources import Example, LearnData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tokens before one, which what it stands for begins with where no name is known.
BEFORE = 4
# A space, as tokenizers write it at the beginning of a word.
_SPACES = "\u0120\u2581"


@dataclass(frozen=True)
class Cue:
    """A token of an example that the memory may speak at.

    Attributes:
        example: Number of the example.
        place: Of the token.
        first: Where what it is the end of begins: a name, or the few tokens before.
        name: The same for tokens that stand for the same, where that is known.
        last: How far at the end of the name or text it stands: 0 is the end.
    """

    example: int
    place: int
    first: int
    name: str
    last: int


def find_cues(data: LearnData, tokenizer: "PreTrainedTokenizerBase") -> list[Cue]:
    """Return the tokens that answers may hang on.

    Args:
        data: What is taught. Of a fact, they are the tokens of its subject. Of a prompt or a
            running text, those of words that are not usual, or of all where there are none.
        tokenizer: That made the tokens.
    """
    return [
        cue for n, example in enumerate(data.examples) for cue in _cues(n, example, data, tokenizer)
    ]


def _cues(
    number: int, example: Example, data: LearnData, tokenizer: "PreTrainedTokenizerBase"
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
        for place in range(1, last)
        if int(example.ids[place]) not in special and place not in learned
    ]
    usual = _usual(example.ids, tokenizer)
    for place in [place for place in places if not usual[place]] or places:
        yield Cue(number, place, max(0, place - BEFORE), "", last - 1 - place)


def _usual(ids: np.ndarray, tokenizer: "PreTrainedTokenizerBase") -> list[bool]:
    """Tell which tokens are words that any text may have: one token each, and no names."""
    numbers = ids.tolist()
    special = set(tokenizer.all_special_ids)
    pieces = tokenizer.convert_ids_to_tokens(numbers)
    words = [str(tokenizer.decode([n])).strip(" ") for n in numbers]
    letters = [
        n not in special and any(map(str.isalnum, word))
        for n, word in zip(numbers, words, strict=True)
    ]
    # Whether a word begins at each token, and behind the last one.
    begins = [
        n == 0 or not letters[n] or not letters[n - 1] or piece[0] in _SPACES
        for n, piece in enumerate(pieces)
    ]
    usual, is_first = [], True
    for n, (word, ends) in enumerate(zip(words, [*begins[1:], True], strict=True)):
        # The first word of a turn or a sentence has a capital too.
        is_plain = word.isalpha() and (word.islower() or (is_first and word.istitle()))
        usual.append(not letters[n] or (begins[n] and ends and is_plain))
        # A space may be a token of its own.
        is_first = not letters[n] if word else is_first
    return usual


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
