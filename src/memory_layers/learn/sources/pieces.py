"""Pieces: texts and conversations that are trained on, asked, or both. Facts are worded here."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, replace

from memory_layers.common.seeds import stable_number
from memory_layers.data.facts import Fact, RelationTemplates
from memory_layers.data.templates import (
    cut_template,
    ends_with_answer,
    fill_template,
    has_subject_first,
)
from memory_layers.learn.sources.rows import Asked, Message, key_of
from memory_layers.learn.sources.types import Form


@dataclass(frozen=True, slots=True)
class Plain:
    """A text of which `text[start:end]` is the answer."""

    text: str
    start: int
    end: int

    @property
    def answer(self) -> str:
        """The answer without white space around it."""
        return self.text[self.start : self.end].strip()


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation. The answer is the turn of the assistant that follows the prompt."""

    prompt: tuple[Message, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Piece:
    """Something to encode.

    Attributes:
        where: Its place, for errors.
        group: Number of the group.
        form: As in Example.
        content: The text or conversation.
        train: It is trained on.
        ask: It is an item of the recall test.
        aliases: Other right answers, where it is asked.
    """

    where: str
    group: int
    form: Form
    content: Plain | Chat
    train: bool
    ask: bool
    aliases: tuple[str, ...] = ()

    def with_answer(self, answer: str) -> "Piece":
        """Return the piece with another answer."""
        old = self.content
        if isinstance(old, Chat):
            return replace(self, content=replace(old, answer=answer))
        text = old.text[: old.start] + answer + old.text[old.end :]
        return replace(self, content=Plain(text, old.start, old.start + len(answer)))


def key_of_piece(piece: Piece) -> str:
    """Return what is the same for pieces of one prompt, or of one running text."""
    content = piece.content
    if isinstance(content, Chat):
        return key_of(content.prompt)
    return key_of(content.text[: content.start] or content.text)


def fact_pieces(
    where: str,
    group: int,
    fact: Fact,
    templates: RelationTemplates,
    *,
    shown: bool,
    chat: bool,
    seed: int,
) -> Iterator[Piece]:
    """Word a fact.

    Statements that have the subject before the answer are trained on, and one of them is asked.
    The others would teach that a text begins with the answer. The question is asked, and trained
    on if the subject is a shown one. All held-out wordings are asked.

    Args:
        where: Place of the fact.
        group: Its number.
        fact: The fact.
        templates: Of its relation.
        shown: Train on the question too.
        chat: Ask the question as a turn of a conversation as well.
        seed: Picks the statement that is asked.
    """

    def piece(form: Form, content: Plain | Chat, *, train: bool, ask: bool = True) -> Piece:
        return Piece(where, group, form, content, train, ask, fact.aliases)

    statements = [text for text in templates.statements if has_subject_first(text)]
    number = stable_number(seed, "statement", fact.relation, fact.subject, fact.answer)
    for n, template in enumerate(statements):
        asked = n == number % len(statements)
        yield piece("statement", _filled(template, fact), train=True, ask=asked)
    question = _filled(templates.question, fact)
    yield piece("question", question, train=shown)
    if chat:
        turn = Message("user", as_turn(question.text[: question.start], fact.subject))
        yield piece("chat", Chat((turn,), fact.answer), train=shown)
    for template in templates.heldout:
        form: Form = "question" if ends_with_answer(template) else "statement"
        yield piece(form, _filled(template, fact), train=False)


def row_pieces(row: Asked, group: int) -> Iterator[Piece]:
    """Turn a row that is no fact into pieces."""
    if row.prompt == "":
        content = Plain(row.answer, 0, len(row.answer))
        yield Piece(row.where, group, "text", content, True, False)
        return
    form: Form = "prompt" if isinstance(row.prompt, str) else "chat"
    yield Piece(row.where, group, form, _content(row, row.prompt), not row.heldout, True)
    for prompt in row.paraphrases:
        yield Piece(row.where, group, form, _content(row, prompt), False, True)


def as_turn(question: str, subject: str = "") -> str:
    """Return what a user would type: "Q: What is ...? A:" becomes "What is ...?".

    Args:
        question: What stands before the answer.
        subject: Must stay in it.
    """
    asked = question.strip()
    # A short label, in any language, in front of the question and behind it: after a question mark
    # or on a line of its own. An answer may have begun behind it: "A: Professor".
    label = r"(.*[?？؟\u037e\n])\s*(\w{0,15}\s*[:：]?|\w{1,15}\s*[:：][^?？؟\u037e:：\n]*)"
    if behind := re.fullmatch(label, asked, re.DOTALL):
        turn = re.sub(r"^\s*\w{1,15}\s*[:：]\s*", "", behind[1].rstrip())
        return turn if subject in turn else asked
    return asked


def _filled(template: str, fact: Fact) -> Plain:
    text, start = fill_template(cut_template(template), fact.subject, fact.answer)
    return Plain(text, start, start + len(fact.answer))


def _content(row: Asked, prompt: str | tuple[Message, ...]) -> Plain | Chat:
    if isinstance(prompt, tuple):
        return Chat(prompt, row.answer)
    text = prompt + _between(prompt, row.answer) + row.answer
    return Plain(text, len(text) - len(row.answer), len(text))


def _between(prompt: str, answer: str) -> str:
    """Return the space that is missing between a prompt and its answer, if one is."""
    edges = prompt[-1], answer[0]
    if any(edge.isspace() or _without_spaces(edge) for edge in edges):
        return ""
    opened = unicodedata.category(prompt[-1]) in ("Ps", "Pi")
    # Not before punctuation, but before .NET.
    closes = re.match(r"[.,;:!?)\]}]+(\s|$)", answer) is not None
    return "" if opened or closes else " "


def _without_spaces(character: str) -> bool:
    """Tell whether a character is of a script that puts no spaces between words."""
    wide = unicodedata.east_asian_width(character) in ("W", "F")
    # Emoji are wide too, and Korean is written with spaces.
    if wide:
        name = unicodedata.name(character, "")
        return not name.startswith("HANGUL") and unicodedata.category(character) != "So"
    return unicodedata.name(character, "").startswith(("THAI", "LAO", "KHMER", "MYANMAR"))
