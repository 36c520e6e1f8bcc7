"""Conversations in tokens, by the chat template of a tokenizer.

A template says how turns are written, but most do not mark what the assistant says. It is found by
writing the turns up to it, as they are written when the model is asked: what the whole conversation
has after them is the answer.
"""

import re
from collections.abc import Sequence
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.common.packages import needs
from memory_layers.data.lines import shorten
from memory_layers.data.tokenizer import write_chat
from memory_layers.learn.sources.encode import Encoded, Encoder
from memory_layers.learn.sources.pieces import Chat
from memory_layers.learn.sources.rows import Message, said_aloud

# Characters for private use, around the number of a special token whose name is said in a turn.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"


class ChatEncoder:
    """Encodes conversations.

    Args:
        encoder: Of texts.

    Raises:
        UserError: The tokenizer has no chat template.
        ImportError: Jinja is not installed.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._tokenizer: Any = encoder.tokenizer
        self._encoder = encoder
        if self._tokenizer.chat_template is None:
            raise UserError(
                "the tokenizer has no chat template, expected one for conversations, got none. "
                "hint: take an instruct model, or data with 'prompt' and 'completion'"
            )
        needs("jinja2")
        names = set(self._tokenizer.all_special_tokens)
        for token in self._tokenizer.added_tokens_decoder.values():
            if token.special:
                names.add(token.content)
        self._names = sorted(names, key=lambda name: (-len(name), name))
        self._special = re.compile("|".join(map(re.escape, self._names)) or r"(?!)")
        self._controls = set(self._tokenizer.convert_tokens_to_ids(self._names))

    def encode(self, where: str, content: Chat) -> list[Encoded]:
        """Encode a conversation: all answers of the assistant are learned.

        Args:
            where: Its place, for errors.
            content: The conversation.

        Returns:
            The conversation. If its template writes a turn otherwise once more follow: one
            conversation for each answer, as it is written when it is the last.

        Raises:
            UserError: The template refuses the turns, or what the assistant says cannot be found in
                what it writes.
        """
        turns = [*content.prompt, Message("assistant", content.answer)]
        turns = [Message(turn.role, self._hidden(turn.content)) for turn in turns]
        ends = [n for n, turn in enumerate(turns, start=1) if n > 1 and turn.role == "assistant"]
        texts = [self._render(where, turns[:end]) for end in ends]
        spans = [
            self._span(where, turns[:end], text) for end, text in zip(ends, texts, strict=True)
        ]
        if all(texts[-1].startswith(text) for text in texts):
            return [self._tokens(texts[-1], spans)]
        return [self._tokens(text, [span]) for text, span in zip(texts, spans, strict=True)]

    def _render(self, where: str, turns: Sequence[Message], *, ask: bool = False) -> str:
        try:
            return write_chat(
                self._tokenizer,
                [{"role": turn.role, "content": turn.content} for turn in turns],
                tokenize=False,
                add_generation_prompt=ask,
            )
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    def _span(self, where: str, turns: Sequence[Message], text: str) -> tuple[int, int]:
        """Return where the last turn and what ends it are in a rendered text."""
        said = said_aloud(turns[-1].content)
        asked = self._render(where, turns[:-1], ask=True)
        start = len(asked)
        if not text.startswith(asked):
            # Some templates begin an answer with what they leave out of a finished one.
            start = text.find(said, _shared(asked, text))
        at = -1 if start < 0 else text.find(said, start)
        if at < 0:
            raise UserError(
                f"{where}: the chat template changes what the assistant says, so that it cannot be "
                f"found, expected {shorten(said)}, got {shorten(text[start:], 100)}. "
                "hint: take another template, or data with 'prompt' and 'completion'"
            )
        closed = self._special.search(text, at + len(said))
        return start, closed.end() if closed else at + len(said)

    def _tokens(self, text: str, spans: Sequence[tuple[int, int]]) -> Encoded:
        """Encode a rendered text up to the end of the last of its spans of characters."""
        text = text[: spans[-1][1]]
        found = None if _OPEN in text else self._whole(text, spans)
        ids, stretches = found or self._cut(text, spans)
        if ids[-1] not in self._controls:
            # A template without a token that ends a turn.
            ids.append(self._encoder.eos)
            stretches[-1] = stretches[-1][0], len(ids)
        return Encoded(ids, tuple(stretches), stretches[-1])

    def _whole(
        self, text: str, spans: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[tuple[int, int]]] | None:
        """Encode a text at once, unless a token reaches over the edge of a span."""
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        stretches = []
        for start, end in spans:
            inside = [
                (n, place)
                for n, place in enumerate(encoded["offset_mapping"])
                if place[0] < end and place[1] > start
            ]
            if inside[0][1][0] < start or inside[-1][1][1] > end:
                return None
            stretches.append((inside[0][0], inside[-1][0] + 1))
        return list(encoded["input_ids"]), stretches

    def _cut(
        self, text: str, spans: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode what is between the edges of spans and special tokens, each for itself."""
        ids: list[int] = []
        stretches = []
        at = 0
        for start, end in spans:
            ids += self._parts(text[at:start])
            first, at = len(ids), end
            ids += self._parts(text[start:end])
            stretches.append((first, len(ids)))
        return ids, stretches

    def _parts(self, text: str) -> list[int]:
        ids: list[int] = []
        at = 0
        for control in self._special.finditer(text):
            ids += self._encoder.tokens([self._shown(text[at : control.start()])])[0]
            ids.append(self._tokenizer.convert_tokens_to_ids(control[0]))
            at = control.end()
        return ids + self._encoder.tokens([self._shown(text[at:])])[0]

    def _hidden(self, text: str) -> str:
        """Replace the names of special tokens, which a template could not keep apart."""
        return self._special.sub(lambda m: f"{_OPEN}{self._names.index(m[0])}{_CLOSE}", text)

    def _shown(self, text: str) -> str:
        return re.sub(f"{_OPEN}([0-9]+){_CLOSE}", lambda m: self._names[int(m[1])], text)


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
