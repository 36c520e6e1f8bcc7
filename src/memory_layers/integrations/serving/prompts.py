"""Prompts and chats as token ids. What users write is text: it never becomes a control token."""

import copy
import threading
from collections.abc import Sequence
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.data.chat import ChatTemplate
from memory_layers.data.encode import encode_texts
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
        self.template = ChatTemplate(self.tokenizer) if tokenizer.chat_template else None

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
        if self.template is None:
            raise RequestError(
                "this model has no chat template, so it cannot chat. hint: /v1/completions",
                param="messages",
            )
        if len(messages) > self.most:
            raise self._too_long(len(messages), "messages")
        self._check_length("".join(message.content for message in messages), "messages")
        roles = ["system" if m.role == "developer" else m.role for m in messages]
        try:
            with self.lock:
                return self.template.asked(roles, [message.content for message in messages])
        except UserError as error:
            raise RequestError(f"`messages`: {error}"[:400], param="messages") from error

    def _text_ids(self, text: str, *, special_tokens: bool = False) -> list[int]:
        """Return the token ids of a text of a user.

        Raises:
            RequestError: It names a special token that the tokenizer cannot write otherwise.
        """
        try:
            with self.lock:
                (found,) = encode_texts(self.tokenizer, [text], special_tokens=special_tokens)
        except UserError as error:
            raise RequestError(f"`prompt`: {error}"[:400], param="prompt") from error
        return list(found.ids)

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
