"""Which tokens of a text are its answer: what training predicts, and what recall asks for."""

from collections.abc import Sequence


def answer_tokens(
    text: str, offsets: Sequence[tuple[int, int]], start: int, end: int
) -> tuple[int, int]:
    """Return the token span of an answer, the token that ends it included.

    The space before an answer is a part of it, also where it is a token of its own: so it counts
    for lm-evaluation-harness.

    Args:
        text: The whole text.
        offsets: Characters of each token of the text: start and end.
        start: Where the answer begins, in characters.
        end: Where it ends.
    """
    first = len(text[:start].rstrip())
    inside = [n for n, (low, high) in enumerate(offsets) if low < end and high > first]
    return inside[0], inside[-1] + 2
