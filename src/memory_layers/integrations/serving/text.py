"""Text out of tokens, one at a time, up to a stop string."""

from collections.abc import Sequence
from typing import Any

# A letter is at most four tokens of a byte each, and may end in one that begins the next letter.
# What is still no letter after so many is no text.
LONGEST_LETTER = 16
# Tokens before the first one that say whether a space belongs before it.
CONTEXT = 4
UNFINISHED = "\ufffd"


class Pieces:
    """The text that each token adds.

    Args:
        tokenizer: To decode with.
        context: Tokens before the first one.
    """

    def __init__(self, tokenizer: Any, context: Sequence[int] = ()) -> None:  # noqa: ANN401
        self.tokenizer = tokenizer
        self.ids = list(context[-CONTEXT:])
        self.read = len(self.ids)

    def push(self, token: int) -> str:
        """Add a token and return the text it completes, "" inside a letter."""
        self.ids.append(token)
        text = self._decode(len(self.ids))
        if text.endswith(UNFINISHED) and len(self.ids) - self.read < LONGEST_LETTER:
            return ""
        return self._take(text)

    def rest(self) -> str:
        """Return the text of a letter that was not completed."""
        return self._take(self._decode(len(self.ids))) if self.read < len(self.ids) else ""

    def _decode(self, end: int) -> str:
        return self.tokenizer.decode(
            self.ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _take(self, text: str) -> str:
        new = text[len(self._decode(self.read)) :]
        self.ids = self.ids[self.read :]
        self.read = len(self.ids)
        return new


class Stopped:
    """A text that grows until it has one of its stop strings, which is cut off.

    Attributes:
        text: All of it.
        sent: How many of its letters were released.
        found: Whether it has come to a stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.longest = max(map(len, stops), default=0)
        self.text, self.sent, self.found = "", 0, False

    def add(self, piece: str) -> None:
        """Add text, up to a stop string."""
        begin = max(0, len(self.text) - self.longest + 1)
        self.text += piece
        places = [place for stop in self.stops if (place := self.text.find(stop, begin)) >= 0]
        if places:
            self.text, self.found = self.text[: min(places)], True

    def release(self, *, final: bool) -> str:
        """Return what was not released yet, but for what may be the start of a stop string."""
        end = len(self.text)
        if not final:
            for held in range(min(self.longest - 1, end - self.sent), 0, -1):
                if any(stop.startswith(self.text[end - held :]) for stop in self.stops):
                    end -= held
                    break
        new, self.sent = self.text[self.sent : end], end
        return new


def offsets(tokenizer: Any, ids: Sequence[int]) -> list[int]:  # noqa: ANN401
    """Return where in the decoded text each token begins."""
    pieces, places, length = Pieces(tokenizer), [], 0
    for token in ids:
        places.append(length)
        length += len(pieces.push(token))
    return places
