"""Prompts with words left out, for what is taught in few wordings.

Of one wording, anything may be what the answer hangs on. Where usual words come and go, it is what
always stands there, most often the name.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import islice

from memory_layers.common.seeds import stable_number
from memory_layers.learn.sources.encode import Encoder
from memory_layers.learn.sources.pieces import Chat, Piece, Plain, key_of_piece
from memory_layers.learn.sources.rows import Message

# Share of the usual words that are left out.
LEFT_OUT = 0.4
# For each prompt that is wanted. Most words of a short one may have to stay.
TRIES = 8
_WORD = re.compile(r"\w+")


def with_shorter(
    pieces: Sequence[Piece], wordings: int, encoder: Encoder, seed: int
) -> list[Piece]:
    """Give prompts and conversations of few wordings more of them, with words left out.

    Only usual words are: those that are one token, unless they are written like a name. So there
    is nothing to leave out in a script without spaces. A prompt of such words alone stays whole.

    Args:
        pieces: Those of a group beside one another.
        wordings: Prompts that a group is to be trained on, statements of facts counted. What has
            as many gets none.
        encoder: Of texts.
        seed: Picks the words.

    Returns:
        The pieces, and behind those of each group the new ones. They are trained on and not asked,
        and no prompt that is asked is among them.
    """
    groups: dict[int, list[Piece]] = defaultdict(list)
    for piece in pieces:
        groups[piece.group].append(piece)
    usual = _usual_words(pieces, encoder)
    lacking, shorter = {}, {}
    for number, same in groups.items():
        trained = [
            piece
            for piece in same
            if piece.train and piece.form in ("prompt", "chat") and _has_name(piece, usual)
        ]
        there = sum(piece.train for piece in same)
        lacking[number] = max(0, wordings - there) if trained else 0
        draw = random.Random(stable_number(seed, "shorter", str(number)))  # noqa: S311
        made = [_shorter(draw.choice(trained), usual, draw) for _ in range(TRIES * lacking[number])]
        shorter[number] = {key_of_piece(piece): piece for piece in made}
    # What is left of two prompts may be the same, with two answers.
    keys = Counter({key_of_piece(piece) for piece in pieces})
    keys.update(key for made in shorter.values() for key in made)
    found = []
    for number, same in groups.items():
        new = (piece for key, piece in shorter[number].items() if keys[key] == 1)
        found += [*same, *islice(new, lacking[number])]
    return found


def _shorter(piece: Piece, usual: AbstractSet[str], draw: random.Random) -> Piece:
    kept = [
        word for word, is_usual in _words(piece, usual) if not is_usual or draw.random() >= LEFT_OUT
    ]
    return replace(_with_prompt(piece, "".join(kept).strip()), ask=False)


def _has_name(piece: Piece, usual: AbstractSet[str]) -> bool:
    return not all(is_usual for _, is_usual in _words(piece, usual))


def _words(piece: Piece, usual: AbstractSet[str]) -> list[tuple[str, bool]]:
    """Return the words of a prompt with the space behind each, and whether they are usual."""
    words = re.findall(r"\S+\s*", _prompt(piece))
    return [(word, _is_usual(word, usual, first=n == 0)) for n, word in enumerate(words)]


def _usual_words(pieces: Sequence[Piece], encoder: Encoder) -> set[str]:
    words = sorted({word for piece in pieces for word in _WORD.findall(_prompt(piece))})
    tokens = encoder.tokens([f" {word.casefold()}" for word in words])
    return {word for word, ids in zip(words, tokens, strict=True) if len(ids) == 1}


def _is_usual(word: str, usual: AbstractSet[str], *, first: bool) -> bool:
    # A name begins with a capital, as the first word of a text does.
    return all(
        part in usual and (part.islower() or (first and n == 0))
        for n, part in enumerate(_WORD.findall(word))
    )


def _prompt(piece: Piece) -> str:
    """Return what is asked, without the turns before it."""
    content = piece.content
    return (
        content.prompt[-1].content if isinstance(content, Chat) else content.text[: content.start]
    )


def _with_prompt(piece: Piece, prompt: str) -> Piece:
    content = piece.content
    if isinstance(content, Chat):
        turns = *content.prompt[:-1], Message(content.prompt[-1].role, prompt)
        return replace(piece, content=Chat(turns, content.answer))
    # What stands between a prompt and its answer belongs to neither.
    old = content.text[: content.start]
    between = old[len(old.rstrip()) :]
    before = prompt + between
    moved = len(before) - content.start
    text = before + content.text[content.start :]
    return replace(piece, content=Plain(text, content.start + moved, content.end + moved))
