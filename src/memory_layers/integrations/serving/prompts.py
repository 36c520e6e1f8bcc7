"""Prompts and chats as token ids. What users write is text: it never becomes a control token."""

import copy
import re
import secrets
import threading
from collections.abc import Sequence
from typing import Any

from memory_layers.integrations.serving.errors import RequestError
from memory_layers.integrations.serving.protocol import Message

# What a text is cut to, a token, to see that it is too long without reading all of it.
LETTERS = 8


class Encoder:
    """A tokenizer for what users write, safe to call from several threads.

    Args:
        tokenizer: A fast one. It is copied, since to encode changes its state.
        vocabulary: Rows of the model's table of token embeddings.
        most: Tokens of a prompt. What is far longer is refused before all of it is encoded.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, most: int) -> None:  # noqa: ANN401
        self.tokenizer = copy.deepcopy(tokenizer)
        self.vocabulary, self.most = vocabulary, most
        self.lock = threading.Lock()
        marks = {
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        }
        # Of two marks that begin alike, the longer one.
        ordered = sorted(marks, key=len, reverse=True)
        self.marks = re.compile("|".join(map(re.escape, ordered)) if marks else r"(?!)")

    def prompt(self, prompt: str | list[int]) -> list[int]:
        """Return the token ids of a prompt, with what the tokenizer begins a text with.

        Raises:
            RequestError: There are none, or ids that the model does not have.
        """
        if isinstance(prompt, str):
            self._check_length(prompt, "prompt")
            ids = self._text_ids(prompt, special_tokens=True)
        else:
            ids = prompt
            if wrong := [i for i in ids if not 0 <= i < self.vocabulary]:
                raise RequestError(
                    f"`prompt`: token id {str(wrong[0])[:20]} is out of range, expected 0 to "
                    f"{self.vocabulary - 1}",
                    param="prompt",
                )
        if not ids:
            raise RequestError("`prompt` is empty, expected at least one token", param="prompt")
        return ids

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a chat, with what the answer begins with.

        Marks that the chat template writes are control tokens, those in the messages are text.

        Raises:
            RequestError: There is no chat template, or it does not take such messages.
        """
        if not self.tokenizer.chat_template:
            raise RequestError(
                "this model has no chat template, so it cannot chat. hint: /v1/completions",
                param="messages",
            )
        if len(messages) > self.most:
            raise self._too_long(len(messages), "messages")
        self._check_length("".join(message.content for message in messages), "messages")
        from jinja2 import TemplateError

        # Stands for a mark while the template is filled in.
        stand_in = f"\ue000{secrets.token_hex(8)}\ue001"
        found: list[str] = []

        def hide(match: re.Match[str]) -> str:
            found.append(match.group())
            return f"{stand_in}{len(found) - 1}\ue002"

        shown = [
            {
                "role": "system" if message.role == "developer" else message.role,
                "content": self.marks.sub(hide, message.content),
            }
            for message in messages
        ]
        with self.lock:
            try:
                text = self.tokenizer.apply_chat_template(
                    shown, add_generation_prompt=True, tokenize=False
                )
            except (TemplateError, TypeError, ValueError) as error:
                raise RequestError(
                    f"`messages`: the chat template of this model refuses them: {error}"[:400],
                    param="messages",
                ) from error
        # At odd places, the numbers of the marks.
        parts = re.split(f"{stand_in}([0-9]+)\ue002", text)
        ids: list[int] = []
        for place, part in enumerate(parts):
            if place % 2 == 1:
                ids += self._text_ids(found[int(part)])
            else:
                with self.lock:
                    ids += self.tokenizer(part, add_special_tokens=False, verbose=False).input_ids
        return ids

    def _text_ids(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Return the token ids of a text of a user."""
        with self.lock:
            return self.tokenizer(
                text,
                add_special_tokens=special_tokens,
                split_special_tokens=True,
                # It would warn of the length, which is checked.
                verbose=False,
            ).input_ids

    def _check_length(self, text: str, param: str) -> None:
        size = LETTERS * self.most
        while size < len(text):
            # The last ones may be others where the text is cut.
            count = len(self._text_ids(text[:size])) - LETTERS
            if count > self.most:
                raise self._too_long(count, param)
            size *= 4

    def _too_long(self, count: int, param: str) -> RequestError:
        return RequestError(
            f"`{param}` has more than {count} tokens, this server takes at most {self.most}",
            param=param,
            code="context_length_exceeded",
        )
