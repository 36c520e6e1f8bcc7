"""What single tokens are called where logprobs are shown."""

import re
from collections.abc import Sequence
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

from memory_layers.integrations.serving.text import UNFINISHED

ONE_BYTE = re.compile("<0x([0-9A-F]{2})>")


class Tokens:
    """Names and bytes of tokens.

    Args:
        tokenizer: A fast one.
    """

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        self.tokenizer = tokenizer
        self.bytes = {letter: byte for byte, letter in bytes_to_unicode().items()}

    def name(self, token: int) -> str:
        """Return the text of a token, or of a part of a letter its bytes, as OpenAI shows them."""
        text = self._text(token)
        part = self._part(token) if UNFINISHED in text else None
        return text if part is None else "bytes:" + "".join(f"\\x{byte:02x}" for byte in part)

    def bytes_of(self, token: int) -> list[int] | None:
        """Return the bytes of a token in UTF-8. None: they are not known."""
        text = self._text(token)
        return self._part(token) if UNFINISHED in text else list(text.encode("utf-8"))

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without control tokens."""
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _text(self, token: int) -> str:
        return self.tokenizer.decode(
            [token], skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _part(self, token: int) -> list[int] | None:
        raw = self.tokenizer.convert_ids_to_tokens(token) or ""
        if match := ONE_BYTE.fullmatch(raw):
            return [int(match[1], 16)]
        found = [self.bytes.get(letter) for letter in raw]
        known = [byte for byte in found if byte is not None]
        return known if known and len(known) == len(found) else None
