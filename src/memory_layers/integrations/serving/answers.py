"""What clients get: completions and chats, whole or in chunks, in OpenAI's format."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from memory_layers.integrations.serving.row import Delta, Row, Scored
from memory_layers.integrations.serving.text import offsets
from memory_layers.integrations.serving.tokens import Tokens

# Of a token that the model rules out. JSON has no infinity.
LEAST_LOGPROB = -9999.0


@dataclass
class Text:
    """What a row has come to so far."""

    text: str = ""
    scored: list[Scored] = field(default_factory=list)
    reason: str | None = None

    def add(self, delta: Delta) -> None:
        """Add what is new."""
        self.text += delta.text
        self.scored += delta.scored
        self.reason = delta.reason


class Answer(Protocol):
    """How a kind of request is answered."""

    def whole(self, texts: Sequence[tuple[Row, Text]], usage: dict[str, int]) -> dict[str, Any]:
        """Return the answer as one object, a choice for each row."""
        ...

    def head(self, index: int, row: Row) -> list[dict[str, Any]]:
        """Return what a stream has before the first token of a choice."""
        ...

    def chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        """Return a part of a stream."""
        ...

    def last(self, usage: dict[str, int]) -> dict[str, Any]:
        """Return what a stream ends with if the client asks what was counted."""
        ...


class CompletionAnswer:
    """Answers of /v1/completions.

    Args:
        model: Its name.
        tokens: What tokens are called.
        prompts: The text of the prompt of each choice, to be shown before it. None: no echo.
        logprobs: Whether they are shown.
        with_usage: Whether a stream ends with what was counted.
    """

    def __init__(
        self,
        model: str,
        tokens: Tokens,
        *,
        prompts: Sequence[str] | None,
        logprobs: bool,
        with_usage: bool,
    ) -> None:
        self.tokens, self.prompts, self.logprobs = tokens, prompts, logprobs
        self.common = _common("cmpl", "text_completion", model)
        self.counted = {"usage": None} if with_usage else {}

    def whole(self, texts: Sequence[tuple[Row, Text]], usage: dict[str, int]) -> dict[str, Any]:
        """Return the answer as one object, a choice for each row."""
        choices = []
        for index, (row, text) in enumerate(texts):
            before, scored = self._echo(index, row)
            shown = [*scored, *_moved(text.scored, len(before))]
            choices.append(self._choice(index, before + text.text, shown, text.reason))
        return {**self.common, "choices": choices, "usage": usage}

    def head(self, index: int, row: Row) -> list[dict[str, Any]]:
        """Return what a stream has before the first token of a choice: the prompt, if asked."""
        if self.prompts is None:
            return []
        choice = self._choice(index, *self._echo(index, row), None)
        return [{**self.common, "choices": [choice], **self.counted}]

    def chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        """Return a part of a stream."""
        shift = 0 if self.prompts is None else len(self.prompts[index])
        scored = _moved(delta.scored, shift)
        choice = self._choice(index, delta.text, scored, delta.reason)
        return {**self.common, "choices": [choice], **self.counted}

    def last(self, usage: dict[str, int]) -> dict[str, Any]:
        """Return what a stream ends with if the client asks what was counted."""
        return {**self.common, "choices": [], "usage": usage}

    def _echo(self, index: int, row: Row) -> tuple[str, list[Scored]]:
        if self.prompts is None:
            return "", []
        scores = row.prompt_scores
        places = offsets(self.tokens.tokenizer, row.prompt) if scores else []
        moved = [
            Scored(one.token, one.logprob, one.top, offset=place)
            for one, place in zip(scores, places, strict=True)
        ]
        return self.prompts[index], moved

    def _choice(
        self, index: int, text: str, scored: Sequence[Scored], reason: str | None
    ) -> dict[str, Any]:
        logprobs = None
        if self.logprobs:
            logprobs = {
                "tokens": [self.tokens.name(one.token) for one in scored],
                "token_logprobs": [_number(one.logprob) for one in scored],
                "top_logprobs": [self._top(one) for one in scored],
                "text_offset": [one.offset for one in scored],
            }
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _top(self, one: Scored) -> dict[str, float] | None:
        """Return the likeliest tokens and the one itself, by name."""
        if one.logprob is None:
            return None
        found: dict[str, float] = {}
        for token, logprob in ((one.token, one.logprob), *one.top):
            # Of two tokens of the same name, the likelier one.
            name = self.tokens.name(token)
            found[name] = max(logprob, found.get(name, LEAST_LOGPROB))
        return found


class ChatAnswer:
    """Answers of /v1/chat/completions.

    Args:
        model: Its name.
        tokens: What tokens are called.
        logprobs: Whether they are shown.
        with_usage: Whether a stream ends with what was counted.
    """

    def __init__(self, model: str, tokens: Tokens, *, logprobs: bool, with_usage: bool) -> None:
        self.tokens, self.logprobs = tokens, logprobs
        self.common = _common("chatcmpl", "chat.completion", model)
        self.streamed = {**self.common, "object": "chat.completion.chunk"}
        self.counted = {"usage": None} if with_usage else {}

    def whole(self, texts: Sequence[tuple[Row, Text]], usage: dict[str, int]) -> dict[str, Any]:
        """Return the answer as one object, a choice for each row."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text.text, "refusal": None},
                "logprobs": self._logprobs(text.scored),
                "finish_reason": text.reason,
            }
            for index, (_, text) in enumerate(texts)
        ]
        return {**self.common, "choices": choices, "usage": usage}

    def head(self, index: int, row: Row) -> list[dict[str, Any]]:
        """Return what a stream has before the first token of a choice: who speaks."""
        del row
        return [self._chunk(index, {"role": "assistant", "content": ""}, (), None)]

    def chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        """Return a part of a stream."""
        content = {"content": delta.text} if delta.text else {}
        return self._chunk(index, content, delta.scored, delta.reason)

    def last(self, usage: dict[str, int]) -> dict[str, Any]:
        """Return what a stream ends with if the client asks what was counted."""
        return {**self.streamed, "choices": [], "usage": usage}

    def _chunk(
        self, index: int, delta: dict[str, str], scored: Sequence[Scored], reason: str | None
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(scored) if scored else None,
            "finish_reason": reason,
        }
        return {**self.streamed, "choices": [choice], **self.counted}

    def _logprobs(self, scored: Sequence[Scored]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        content = [
            {
                **self._token(one.token, one.logprob),
                "top_logprobs": [self._token(*pair) for pair in one.top],
            }
            for one in scored
        ]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> dict[str, Any]:
        return {
            "token": self.tokens.name(token),
            "logprob": _number(logprob),
            "bytes": self.tokens.bytes_of(token),
        }


def _common(prefix: str, kind: str, model: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def _moved(scored: Sequence[Scored], shift: int) -> list[Scored]:
    return [Scored(one.token, one.logprob, one.top, one.offset + shift) for one in scored]


def _number(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST_LOGPROB)
