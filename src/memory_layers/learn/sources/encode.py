"""Pieces in tokens: where the answer begins and ends, and what becomes of bos, eos and length."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memory_layers.common.errors import UserError
from memory_layers.data.encode import Tokens, encode_texts
from memory_layers.data.tokens import answer_tokens
from memory_layers.learn.sources.pieces import Plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Token ids of a text or conversation.

    Attributes:
        ids: The ids.
        spans: What is learned: first token and end of each stretch.
        answer: First token of the answer, and the end behind the token that ends it.
        last: The answer ends the text.
    """

    ids: list[int]
    spans: tuple[tuple[int, int], ...]
    answer: tuple[int, int]
    last: bool = True


class Encoder:
    """Encodes texts as the model reads them.

    A text begins as the tokenizer begins texts, with a beginning-of-text token or without, and
    ends with the end-of-text token. Names of special tokens inside a text stay text.

    Args:
        tokenizer: A fast one with an end-of-text token.

    Raises:
        UserError: It is another one.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        if not tokenizer.is_fast:
            raise UserError(
                f"the tokenizer must be a fast one, got {type(tokenizer).__name__}. "
                "hint: load it with AutoTokenizer from a folder with tokenizer.json"
            )
        if tokenizer.eos_token_id is None:
            raise UserError(
                "the tokenizer has no eos_token, expected one that ends an answer. "
                "hint: tokenizer.eos_token = ..."
            )
        self.tokenizer: Any = tokenizer
        self.eos: int = tokenizer.eos_token_id
        # Whatever stands before a text by default. What would follow it is replaced by eos.
        bare, dressed = self.tokens(["a"])[0], self.tokenizer("a")["input_ids"]
        places = range(len(dressed) - len(bare) + 1)
        at = [n for n in places if dressed[n : n + len(bare)] == bare]
        self.begin: list[int] = list(dressed[: at[0]]) if at else []

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts without special tokens."""
        return [list(found.ids) for found in encode_texts(self.tokenizer, texts)]

    def plain(self, contents: Sequence[Plain]) -> list[Encoded]:
        """Encode texts with the spans of their answers."""
        whole = [content.start == 0 and content.end == len(content.text) for content in contents]
        texts = iter(self.tokens([c.text for c, one in zip(contents, whole, strict=True) if one]))
        parts = iter(self._spans([c for c, one in zip(contents, whole, strict=True) if not one]))
        return [self._text(next(texts)) if one else next(parts) for one in whole]

    def _text(self, ids: list[int]) -> Encoded:
        ids = [*self.begin, *ids, self.eos]
        return Encoded(ids, ((0, len(ids)),), (0, len(ids)))

    def _spans(self, contents: Sequence[Plain]) -> list[Encoded]:
        encoded = encode_texts(self.tokenizer, [c.text for c in contents], offsets=True)
        # The space before an answer is a part of it. A line break belongs to the prompt.
        starts = [len(content.text[: content.start].rstrip(" ")) for content in contents]
        heads = self.tokens([c.text[:start] for c, start in zip(contents, starts, strict=True)])
        rows = zip(contents, starts, heads, encoded, strict=True)
        return [self._one(*row) for row in rows]

    def _one(
        self,
        content: Plain,
        start: int,
        head: list[int],
        found: Tokens,
    ) -> Encoded:
        shift = len(self.begin)
        last = content.end == len(content.text)
        ids = list(found.ids)
        first, end = answer_tokens(content.text, found.offsets, start, content.end)
        if ids[: len(head)] == head:
            first = len(head)
        elif last:
            # A token would reach over the end of the prompt, as for "is" and "land". Who asks gives
            # the prompt alone.
            rest = content.text[start:]
            for parts in self.tokens([rest, rest.lstrip(" ")]):
                if self._decoded([*head, *parts]) == self._decoded(ids):
                    first, ids = len(head), [*head, *parts]
                    break
        # The token that ends the answer is learned as well, so that the answer ends.
        span = (shift + first, shift + (len(ids) + 1 if last else end))
        return Encoded([*self.begin, *ids, self.eos], (span,), span, last)

    def spells(self, encoded: Encoded, answer: str) -> bool:
        """Tell whether the tokens of an answer can be read back."""
        ids = encoded.ids[encoded.answer[0] : encoded.answer[1] - 1]
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            return False
        return _letters(answer) in _letters(self._decoded(ids))

    def _decoded(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _letters(text: str) -> str:
    """Return a text without what tokenizers may change: case, accents and white space."""
    plain = unicodedata.normalize("NFKD", text).casefold()
    return "".join(c for c in plain if not c.isspace() and not unicodedata.combining(c))
