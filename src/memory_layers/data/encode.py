"""Texts of users in tokens: what they say stays text, and becomes no control token.

Documents, facts, prompts and answers all go this way. Next: chat.py, conversations, in which a
template writes control tokens around what is said.
"""

import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from memory_layers.common.errors import UserError
from memory_layers.data.lines import check_complete

# The tokenizer keeps all that it knows of the tokens of a call, some 150 bytes a character.
TEXTS_AT_A_TIME, CHARACTERS_AT_A_TIME = 20_000, 2_000_000
# Characters on either side of where a long text is cut: enough to see which tokens are there.
_AROUND = 200
# Places that are tried for a cut.
_TRIED = 20


class Tokens(NamedTuple):
    """Tokens of a text.

    Attributes:
        ids: Token ids. Of a long text an array, which takes a ninth of the memory.
        offsets: Characters of each token: start and end. Empty where they are not asked for.
    """

    ids: Sequence[int]
    offsets: list[tuple[int, int]]


def encode_texts(
    tokenizer: Any,  # noqa: ANN401
    texts: Sequence[str],
    *,
    special_tokens: bool = False,
    offsets: bool = False,
    progress: Callable[[int], object] = lambda done: None,
) -> Iterator[Tokens]:
    """Yield the tokens of texts. The names of special tokens in them are letters as all else.

    Args:
        tokenizer: A fast one.
        texts: Of users.
        special_tokens: Put before and behind each text what the tokenizer puts there by default.
        offsets: Return where the tokens are, too.
        progress: Called with a number of characters that are encoded.

    Raises:
        UserError: A text has half of a character, or names a special token whose letters the
            tokenizer cannot write.
    """
    names = special_names(tokenizer)
    for part in _parts(texts):
        if len(part[0]) > CHARACTERS_AT_A_TIME and not special_tokens:
            yield _in_slices(tokenizer, part[0], names, offsets, progress)
        else:
            yield from _encoded(tokenizer, part, names, special_tokens, offsets)
            progress(sum(map(len, part)))


def special_names(tokenizer: Any) -> dict[int, str]:  # noqa: ANN401
    """Return the names of the special tokens of a tokenizer by their ids."""
    names = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    for number, token in tokenizer.added_tokens_decoder.items():
        if token.special:
            names[number] = token.content
    return names


def _parts(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the texts of one call of the tokenizer after the other. A long one is alone."""
    low = size = 0
    for n, text in enumerate(texts):
        if n > low and (n - low == TEXTS_AT_A_TIME or size + len(text) > CHARACTERS_AT_A_TIME):
            yield texts[low:n]
            low, size = n, 0
        size += len(text)
    if texts:
        yield texts[low:]


def _encoded(
    tokenizer: Any,  # noqa: ANN401
    texts: Sequence[str],
    names: Mapping[int, str],
    special_tokens: bool,
    offsets: bool,
) -> Iterator[Tokens]:
    def call(some: Sequence[str], *, with_offsets: bool) -> Any:  # noqa: ANN401
        return tokenizer(
            list(some),
            add_special_tokens=special_tokens,
            split_special_tokens=True,
            return_offsets_mapping=with_offsets,
            # No warning about the length, which is looked after.
            verbose=False,
        )

    for text in texts:
        check_complete("the text", text)
    found = call(texts, with_offsets=offsets)
    for n, text in enumerate(texts):
        ids = found["input_ids"][n]
        places = found["offset_mapping"][n] if offsets else []
        # Where the vocabulary is searched for whole words, as Unigram does, names are found there.
        if not names.keys().isdisjoint(ids) and _says_one_of(names.values(), text):
            places = places or call([text], with_offsets=True)["offset_mapping"][0]
            ids, places = _spelled(tokenizer, text, Tokens(ids, places), names)
        yield Tokens(ids, places if offsets else [])


def _says_one_of(names: Iterable[str], text: str) -> bool:
    plain = unicodedata.normalize("NFKC", text)
    return any(name in plain for name in names)


def _spelled(tokenizer: Any, text: str, found: Tokens, names: Mapping[int, str]) -> Tokens:  # noqa: ANN401
    """Write the names of special tokens letter by letter."""
    ids: list[int] = []
    places: list[tuple[int, int]] = []
    for number, (start, end) in zip(*found, strict=True):
        name, letters = names.get(number), [number]
        if name is not None and unicodedata.normalize("NFKC", text[start:end]).strip() == name:
            letters = [tokenizer.convert_tokens_to_ids(letter) for letter in name]
        if None in letters:
            raise UserError(
                f"the text says {name}, which is a special token of the tokenizer and cannot be "
                "written otherwise with it. hint: take it out, or take another tokenizer"
            )
        ids += letters
        places += [(start, end)] * len(letters)
    return Tokens(ids, places)


def _in_slices(
    tokenizer: Any,  # noqa: ANN401
    text: str,
    names: Mapping[int, str],
    offsets: bool,
    progress: Callable[[int], object],
) -> Tokens:
    """Encode a long text in several calls, cut where that changes no token."""

    def tokens(*some: str, with_offsets: bool = False) -> list[Tokens]:
        return [*_encoded(tokenizer, some, names, False, with_offsets)]

    cuts = [0]
    for middle in range(CHARACTERS_AT_A_TIME, len(text) - _AROUND, CHARACTERS_AT_A_TIME):
        first = middle - _AROUND
        near = text[first : middle + _AROUND]
        (whole,) = tokens(near, with_offsets=True)
        starts = {start for start, _ in whole.offsets if start > 0}
        # Before a space, words are whole. A text without spaces is cut between its tokens.
        ordered = sorted(starts, key=lambda n: (not near[n].isspace(), abs(n - _AROUND)))
        for n in ordered[:_TRIED]:
            before, after = tokens(near[:n], near[n:])
            if [*before.ids, *after.ids] == whole.ids:
                cuts.append(first + n)
                break
    ids, places = array("i"), []
    for start, end in pairwise([*cuts, len(text)]):
        (part,) = tokens(text[start:end], with_offsets=offsets)
        ids.extend(part.ids)
        places.extend((low + start, high + start) for low, high in part.offsets)
        # Kept along, it would lie between what is freed, and hold all of that.
        del part
        progress(end - start)
    return Tokens(ids, places)
