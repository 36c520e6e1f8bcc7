"""Conversations in tokens: control tokens come from the chat template, and what is said is text."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

from memory_layers.common.errors import UserError
from memory_layers.data.encode import encode_texts, special_names
from memory_layers.data.lines import check_complete
from memory_layers.data.tokenizer import write_chat

# Characters for private use. Each stands for a name of a special token while a template is written.
_PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class ChatTemplate:
    """The chat template of a tokenizer, which writes the turns of a conversation.

    Args:
        tokenizer: A fast one.

    Attributes:
        controls: The ids of its special tokens.

    Raises:
        UserError: It has no chat template.
    """

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        if not tokenizer.chat_template:
            raise UserError(
                "the tokenizer has no chat template, expected one for conversations, got none. "
                "hint: take an instruct model, or data with 'prompt' and 'completion'"
            )
        self._tokenizer = tokenizer
        self._ids = {name: number for number, name in special_names(tokenizer).items()}
        self.controls = frozenset(self._ids.values())
        longest_first = sorted(self._ids, key=lambda name: (-len(name), name))
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def hide(self, said: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Replace the names of special tokens in what is said, for a template to keep them apart.

        Args:
            said: The texts of the turns.

        Returns:
            The texts with one character for each name, or for the part of one that a text ends
            in and the next one goes on with, and the name or part by its character.

        Raises:
            UserError: A text has half of a surrogate pair, or all characters for private use.
        """
        for text in said:
            check_complete("a turn", text)
        names = dict.fromkeys(name for text in said for name in self._special.findall(text))
        # A template may write turns without anything between them.
        begun = [*self._begun(said)]
        names |= dict.fromkeys(part for _, part in begun)
        if not names:
            return list(said), {}
        used = set("".join(said))
        free = (letter for letter in map(chr, chain(*_PRIVATE)) if letter not in used)
        letters = dict(zip(names, free, strict=False))
        if len(letters) < len(names):
            raise UserError(
                "the turns name special tokens and have all characters for private use, expected "
                f"{len(names)} of these to be free, got {len(letters)}. hint: take some out"
            )
        hidden = [self._special.sub(lambda match: letters[match[0]], text) for text in said]
        for n, part in begun:
            body = hidden[n].rstrip()
            hidden[n] = body.removesuffix(part) + letters[part] + hidden[n][len(body) :]
        return hidden, {letter: name for name, letter in letters.items()}

    def _begun(self, said: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Yield which texts end in a part of a name that the next ones complete, and the part."""
        stripped = [text.strip() for text in said]
        ends = [*accumulate(map(len, stripped))]
        for match in self._special.finditer("".join(stripped)):
            n = bisect_right(ends, match.start())
            if match.end() > ends[n]:
                yield n, match[0][: ends[n] - match.start()]

    def render(self, roles: Sequence[str], said: Sequence[str], *, ask: bool) -> str:
        """Write turns.

        Args:
            roles: Of the turns.
            said: Their texts, from `hide`.
            ask: End with what an answer begins with.

        Raises:
            UserError: The template refuses the turns.
            ImportError: Jinja is not installed.
        """
        turns = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
        return write_chat(self._tokenizer, turns, tokenize=False, add_generation_prompt=ask)

    def end_of_control(self, text: str, start: int) -> int | None:
        """Return where the first control token behind a place of a written text ends."""
        found = self._special.search(text, start)
        return found.end() if found else None

    def tokens(self, text: str, names: Mapping[str, str]) -> list[int]:
        """Return the ids of a part of a written text.

        Args:
            text: From `render`, or a part of it.
            names: From `hide`.
        """
        ids: list[int] = []
        at = 0
        shown = str.maketrans(dict(names))
        for control in self._special.finditer(text):
            ids += self._text(text[at : control.start()].translate(shown))
            ids.append(self._ids[control[0]])
            at = control.end()
        return ids + self._text(text[at:].translate(shown))

    def whole(self, text: str) -> tuple[list[int], list[tuple[int, int]]] | None:
        """Return the ids and offsets of a written text in which no name is hidden.

        None: the tokenizer finds control tokens where there are other letters, such as capitals.
        """
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids = list(encoded["input_ids"])
        # What the tokenizer has no token for is none of them.
        controls = self.controls - {self._tokenizer.unk_token_id}
        written = [self._ids[name] for name in self._special.findall(text)]
        if [n for n in ids if n in controls] != [n for n in written if n in controls]:
            return None
        return ids, encoded["offset_mapping"]

    def asked(self, roles: Sequence[str], said: Sequence[str]) -> list[int]:
        """Return the ids of turns with what an answer begins with.

        Args:
            roles: Of the turns.
            said: Their texts.

        Raises:
            UserError: The template refuses the turns, or writes nothing.
        """
        hidden, names = self.hide(said)
        text = self.render(roles, hidden, ask=True)
        whole = None if names else self.whole(text)
        ids = self.tokens(text, names) if whole is None else whole[0]
        if not ids:
            raise UserError(
                "the chat template writes nothing of these turns, expected a text. hint: look at "
                "chat_template.jinja of the tokenizer"
            )
        return ids

    def _text(self, text: str) -> list[int]:
        return [*next(encode_texts(self._tokenizer, [text])).ids] if text else []
