"""Conversations in tokens, and which of them are learned.

A template says how turns are written, but most do not mark what the assistant says. It is found by
writing the turns up to it, as they are written when the model is asked: what the whole conversation
has after them is the answer.
"""

from collections.abc import Mapping, Sequence

from memory_layers.common.errors import UserError
from memory_layers.data.chat import ChatTemplate
from memory_layers.data.lines import shorten
from memory_layers.learn.sources.encode import Encoded, Encoder
from memory_layers.learn.sources.pieces import Chat
from memory_layers.learn.sources.rows import said_aloud


class ChatEncoder:
    """Encodes conversations.

    Args:
        encoder: Of texts.

    Raises:
        UserError: The tokenizer has no chat template.
        ImportError: Jinja is not installed.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._template = ChatTemplate(encoder.tokenizer)
        self._eos = encoder.eos

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
        roles = [*(turn.role for turn in content.prompt), "assistant"]
        ends = [n for n, role in enumerate(roles, start=1) if n > 1 and role == "assistant"]
        try:
            said, names = self._template.hide(
                [*(turn.content for turn in content.prompt), content.answer]
            )
            texts = [self._template.render(roles[:end], said[:end], ask=False) for end in ends]
            spans = [
                self._span(roles[:end], said[:end], text)
                for end, text in zip(ends, texts, strict=True)
            ]
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if all(texts[-1].startswith(text) for text in texts):
            return [self._tokens(texts[-1], spans, names)]
        return [self._tokens(text, [span], names) for text, span in zip(texts, spans, strict=True)]

    def _span(self, roles: Sequence[str], said: Sequence[str], text: str) -> tuple[int, int]:
        """Return where the last turn and what ends it are in a rendered text."""
        aloud = said_aloud(said[-1])
        asked = self._template.render(roles[:-1], said[:-1], ask=True)
        start = len(asked)
        if not text.startswith(asked):
            # Some templates begin an answer with what they leave out of a finished one.
            start = text.find(aloud, _shared(asked, text))
        at = -1 if start < 0 else text.find(aloud, start)
        if at < 0:
            raise UserError(
                "the chat template changes what the assistant says, so that it cannot be found, "
                f"expected {shorten(aloud)}, got {shorten(text[start:], 100)}. "
                "hint: take another template, or data with 'prompt' and 'completion'"
            )
        end = at + len(aloud)
        return start, self._template.end_of_control(text, end) or end

    def _tokens(
        self, text: str, spans: Sequence[tuple[int, int]], names: Mapping[str, str]
    ) -> Encoded:
        """Encode a rendered text up to the end of the last of its spans of characters."""
        text = text[: spans[-1][1]]
        found = None if names else self._whole(text, spans)
        ids, stretches = found or self._cut(text, spans, names)
        if ids[-1] not in self._template.controls:
            # A template without a token that ends a turn.
            ids.append(self._eos)
            stretches[-1] = stretches[-1][0], len(ids)
        return Encoded(ids, tuple(stretches), stretches[-1])

    def _whole(
        self, text: str, spans: Sequence[tuple[int, int]]
    ) -> tuple[list[int], list[tuple[int, int]]] | None:
        """Encode a text at once, unless a token reaches over the edge of a span."""
        whole = self._template.whole(text)
        if whole is None:
            return None
        ids, offsets = whole
        stretches = []
        for start, end in spans:
            inside = [
                (n, place) for n, place in enumerate(offsets) if place[0] < end and place[1] > start
            ]
            if inside[0][1][0] < start or inside[-1][1][1] > end:
                return None
            stretches.append((inside[0][0], inside[-1][0] + 1))
        return ids, stretches

    def _cut(
        self, text: str, spans: Sequence[tuple[int, int]], names: Mapping[str, str]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode what is between the edges of spans and special tokens, each for itself."""
        ids: list[int] = []
        stretches = []
        at = 0
        for start, end in spans:
            ids += self._template.tokens(text[at:start], names)
            first, at = len(ids), end
            ids += self._template.tokens(text[start:end], names)
            stretches.append((first, len(ids)))
        return ids, stretches


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
